"""What ITK passes over in silence: files cut short, damaged, or with NaN in them.

ITK 5 fills a NIfTI file that ends early with zeros, turns its NaN into 0 and its impossible spacings
into 1 mm, and reads a MetaImage whose compressed voxels are damaged as noise. All of these would
become a wrong mask, so the bytes are counted and checked before ITK sees the file.
"""

import math
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import igzip
from isal.igzip_lib import IsalError

from hnseg.errors import HnsegError

_CHUNK = 1 << 24  # bytes; a multiple of every voxel's size
MAX_VOXELS = 1 << 30  # 1024³, 4 GiB in memory; whole-body CTs hold half of that
_NIFTI_FLOATS = {16: "f4", 64: "f8"}  # NIfTI datatype code → numpy type
_META_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
# MetaImage keys that hold one number for each axis (1), or for each pair of them (2).
_META_LISTS = dict.fromkeys(("DimSize", "ElementSpacing", "ElementSize"), 1)
_META_LISTS |= dict.fromkeys(("Offset", "Position", "Origin", "CenterOfRotation"), 1)
_META_LISTS |= dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), 2)


def check_file(path: Path) -> None:
    """Refuse a NIfTI (.nii, .nii.gz) or MetaImage (.mha) file that does not hold all its voxels unharmed.

    Raises:
        HnsegError: not of the format its name says, cut short, damaged, larger than any scan, NaN or infinite
            voxels (NIfTI; ITK keeps those of a MetaImage), or a spacing that is not a positive number.
    """
    meta = path.name.lower().endswith(".mha")
    try:
        with path.open("rb") as file:
            if meta:
                _check_metaimage(path, file)
            elif file.peek(2)[:2] == b"\x1f\x8b":  # gzip's magic number
                with igzip.open(file) as unpacked:  # unpacks twice as fast as zlib
                    _check_nifti(path, unpacked.read)
            else:
                _check_nifti(path, file.read)
    except (EOFError, zlib.error, IsalError, igzip.BadGzipFile) as error:  # type: ignore[misc]  # its stub
        raise HnsegError(f"{path}: cut short or damaged ({error}); copy or convert it again") from error
    except (ValueError, KeyError, struct.error, OverflowError) as error:
        kind = "MetaImage (.mha)" if meta else "NIfTI"
        raise HnsegError(f"{path}: its header is not {kind}; copy or convert it again") from error


def non_finite(path: Path, count: int) -> HnsegError:
    """The error for `count` NaN or infinite voxels in `path`."""
    return HnsegError(
        f"{path}: {count} NaN or infinite values; replace them (air is -1000 HU, no uptake 0 SUV)"
    )


def _check_nifti(path: Path, read: Callable[[int], bytes]) -> None:
    """Header fields as in nifti1.h and nifti2.h, voxels to the last byte."""
    first = read(4)
    order = "<" if first[:1] in (b"\x5c", b"\x1c") else ">"
    if struct.unpack(f"{order}i", first)[0] == 348:
        header = first + read(344)
        dim: Sequence[int] = struct.unpack_from(f"{order}8h", header, 40)
        datatype, bits = struct.unpack_from(f"{order}2h", header, 70)
        pixdim = struct.unpack_from(f"{order}8f", header, 76)
        offset = int(struct.unpack_from(f"{order}f", header, 108)[0])
    elif struct.unpack(f"{order}i", first)[0] == 540:
        header = first + read(536)
        datatype, bits, *dim = struct.unpack_from(f"{order}2h8q", header, 12)
        pixdim = struct.unpack_from(f"{order}8d", header, 104)
        offset = struct.unpack_from(f"{order}q", header, 168)[0]
    else:
        raise ValueError("not NIfTI")
    spatial = pixdim[1 : min(dim[0], 3) + 1]
    if not all(math.isfinite(step) and step > 0 for step in spatial):
        spacing = ", ".join(f"{step:g}" for step in spatial)
        raise HnsegError(f"{path}: spacing ({spacing}) mm is impossible; correct the header")
    read(min(max(offset - len(header), 0), _CHUNK))  # extensions
    voxels = _count(path, dim[1 : dim[0] + 1])
    dtype = order + _NIFTI_FLOATS[datatype] if datatype in _NIFTI_FLOATS else None
    expected = voxels * bits // 8
    held, bad = _scan(read, expected, dtype)
    _require_all(path, held, expected)
    if bad:
        raise non_finite(path, bad)


def _scan(read: Callable[[int], bytes], expected: int, dtype: str | None) -> tuple[int, int]:
    """Read to the end of the file; the voxels' bytes among `expected`, and the non-finite values."""
    held = bad = 0
    while chunk := read(_CHUNK):  # to the very end, where gzip keeps its checksum
        chunk = chunk[: expected - held]
        held += len(chunk)
        if dtype:
            values = np.frombuffer(chunk, dtype, count=len(chunk) // int(dtype[-1]))
            bad += values.size - int(np.isfinite(values).sum())
    return held, bad


def _check_metaimage(path: Path, file: BinaryIO) -> None:
    """Header, then the voxels, packed by zlib or plain."""
    header = _meta_header(file)
    if header["ElementDataFile"] != "LOCAL":
        raise HnsegError(f"{path}: its voxels lie in another file; write them into one .mha")
    voxels = _count(path, [int(size) for size in header["DimSize"].split()])
    channels = int(header.get("ElementNumberOfChannels", "1"))
    kind = header["ElementType"].removeprefix("MET_").removesuffix("_ARRAY").removeprefix("U")
    packed = header.get("CompressedData", "False").lower() == "true"
    held = _unpacked_bytes(file) if packed else _plain_bytes(file)
    _require_all(path, held, voxels * channels * _META_BYTES[kind])


def _meta_header(file: BinaryIO) -> dict[str, str]:
    """The lines up to ElementDataFile, which comes last."""
    header: dict[str, str] = {}
    while "ElementDataFile" not in header:
        key, equals, value = file.readline(10_000).decode("latin-1").partition("=")
        if not equals:
            raise ValueError("not MetaImage")
        header[key.strip()] = value.strip()
    # MetaIO reads as many numbers as NDims says, past the end of a shorter list, and may crash.
    dimensions = int(header["NDims"])
    for key, power in _META_LISTS.items():
        if key in header and len([float(n) for n in header[key].split()]) != dimensions**power:
            raise ValueError(f"{key} is not {dimensions}-D")
    return header


def _unpacked_bytes(file: BinaryIO) -> int:
    unpack = zlib.decompressobj(wbits=47)  # zlib or gzip, whichever it is
    held = 0
    # A small piece at a time: it may unpack to a thousand times as much.
    while not unpack.eof and (piece := file.read(1 << 16)):
        held += len(unpack.decompress(piece))
    if not unpack.eof:
        raise EOFError("compressed voxels end early")
    return held


def _plain_bytes(file: BinaryIO) -> int:
    start = file.tell()
    return file.seek(0, 2) - start


def _count(path: Path, size: Sequence[int]) -> int:
    """Voxels of an image, before anything makes room for them."""
    voxels = math.prod(size)
    if voxels > MAX_VOXELS:
        shown = " x ".join(map(str, size))
        raise HnsegError(f"{path}: size {shown} is larger than any scan; correct the header")
    return voxels


def _require_all(path: Path, held: int, expected: int) -> None:
    if held < expected:
        raise HnsegError(f"{path}: cut short, {held} of {expected} bytes of voxels; copy or convert it again")
