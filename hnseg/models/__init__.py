"""Networks, losses and the training module."""
