"""What a run tells while it trains: metrics, pictures, where it comes from. The only code that knows W&B."""

from hnseg.tracking.ablation import log_ablation
from hnseg.tracking.loggers import loggers

__all__ = ["log_ablation", "loggers"]
