"""The official scores on arrays, and as torchmetrics; only `torch_metrics` loads torch, which takes long."""
