"""Foreign checkpoints, read without running what is in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct, scalar

from hnseg.errors import HnsegError

# Beyond tensors and plain data, both frameworks write numbers and small arrays of NumPy into their logs.
# Each dtype is pickled by its own class since NumPy 2; the function's module has moved between the two.
_DTYPES = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")]
_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    np.dtype,
    np.ndarray,
    *_DTYPES,
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for function, name in ((scalar, "scalar"), (_reconstruct, "_reconstruct"))
    ),
]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What torch.save wrote: tensors, plain data and numbers of NumPy; nothing else is built.

    Args:
        path: The file.

    Returns:
        Its dictionary, tensors on the CPU.

    Raises:
        HnsegError: The file is missing, damaged or something else, or asks for a class or function beyond
            those.
    """
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise HnsegError(f"{path}: cannot be read ({error.strerror}); check the path and allow it") from error
    except Exception as error:  # a damaged pickle stumbles over anything
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise HnsegError(
                f"{path}: holds {wanted[1]}, which could run code and is not read; save its weights alone "
                "as tensors"
            ) from error
        # What torch says of it is its own affair, or advice to load the file with its code.
        raise HnsegError(
            f"{path}: is no file of torch.save, or a damaged one; copy it again (from Git LFS: git lfs pull)"
        ) from error
    if not isinstance(stored, dict):
        raise HnsegError(f"{path}: holds {type(stored).__name__}, no checkpoint's dictionary; choose another")
    return stored
