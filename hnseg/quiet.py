"""What keeps libraries from talking over the progress bar."""

import logging
import warnings


def quiet() -> None:
    """Leaves the terminal to the progress bar: libraries speak only of what went wrong."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torchio")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    # Of convolutions of one voxel, whose channels-last strides are told in two ways.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
