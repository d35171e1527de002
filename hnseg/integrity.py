"""What ITK passes over in silence: files cut short, damaged, or with NaN in them.

ITK 5 fills a NIfTI file that ends early with zeros, turns its NaN into 0 and its impossible spacings
into 1 mm, and reads a MetaImage whose compressed voxels are damaged as noise. All of these would
become a wrong mask, so the bytes are counted and checked before ITK sees the file. What was unpacked for it
need not be unpacked again, which takes ITK most of the time that reading a scan does.
"""

import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from isal import igzip
from isal.igzip_lib import IsalError
from numpy.typing import NDArray

from hnseg.errors import HnsegError

_CHUNK = 1 << 24  # bytes; a multiple of every voxel's size
_GZIP_MOST = 1032  # gzip packs no more bytes into one
MAX_VOXELS = 1 << 30  # 1024³, 4 GiB in memory; whole-body CTs hold half of that
# NIfTI datatype code → numpy type, of one number a voxel.
_NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
_META_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
# MetaImage keys that hold one number for each axis (1), or for each pair of them (2).
_META_LISTS = dict.fromkeys(("DimSize", "ElementSpacing", "ElementSize"), 1)
_META_LISTS |= dict.fromkeys(("Offset", "Position", "Origin", "CenterOfRotation"), 1)
_META_LISTS |= dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), 2)


def check_file(path: Path) -> NDArray[Any] | None:
    """Refuse a NIfTI (.nii, .nii.gz) or MetaImage (.mha) file that does not hold all its voxels unharmed.

    Returns:
        The voxels of a NIfTI file as they are stored, flat, x fastest; None of any other file, and of one
        whose voxels ITK scales or brings into another form.

    Raises:
        HnsegError: not of the format its name says, cut short, damaged, larger than any scan, NaN or infinite
            voxels (NIfTI; ITK keeps those of a MetaImage), or a spacing that is not a positive number.
    """
    meta = path.name.lower().endswith(".mha")
    try:
        with path.open("rb") as file:
            if meta:
                _check_metaimage(path, file)
                return None
            if file.peek(2)[:2] == b"\x1f\x8b":  # gzip's magic number
                with igzip.open(file) as unpacked:  # unpacks twice as fast as zlib
                    return _check_nifti(path, unpacked.read, _GZIP_MOST * path.stat().st_size)
            return _check_nifti(path, file.read, path.stat().st_size)
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


def _check_nifti(path: Path, read: Callable[[int], bytes], most: int) -> NDArray[Any] | None:
    """Header fields as in nifti1.h and nifti2.h, voxels to the last byte; the file holds `most` at most."""
    first = read(4)
    order = "<" if first[:1] in (b"\x5c", b"\x1c") else ">"
    if struct.unpack(f"{order}i", first)[0] == 348:
        header = first + read(344)
        dim: Sequence[int] = struct.unpack_from(f"{order}8h", header, 40)
        datatype, bits = struct.unpack_from(f"{order}2h", header, 70)
        pixdim = struct.unpack_from(f"{order}8f", header, 76)
        offset, *scale = struct.unpack_from(f"{order}3f", header, 108)
    elif struct.unpack(f"{order}i", first)[0] == 540:
        header = first + read(536)
        datatype, bits, *dim = struct.unpack_from(f"{order}2h8q", header, 12)
        pixdim = struct.unpack_from(f"{order}8d", header, 104)
        offset, *scale = struct.unpack_from(f"{order}q2d", header, 168)
    else:
        raise ValueError("not NIfTI")
    spatial = pixdim[1 : min(dim[0], 3) + 1]
    if not all(math.isfinite(step) and step > 0 for step in spatial):
        spacing = ", ".join(f"{step:g}" for step in spatial)
        raise HnsegError(f"{path}: spacing ({spacing}) mm is impossible; correct the header")
    _skip(read, int(offset) - len(header))  # extensions
    count = _count(path, [dim[1], *(max(n, 1) for n in dim[2 : dim[0] + 1])])  # 0 stands for 1
    stored = np.dtype(order + _NIFTI_TYPES[datatype]) if datatype in _NIFTI_TYPES else None
    # A damaged header may promise more than there is memory for.
    if stored is None or stored.itemsize * 8 != bits or count * stored.itemsize > most:
        _require_all(path, _length(read), count * bits // 8)
        return None
    voxels = np.empty(count, stored)
    _require_all(path, _fill(voxels, read), voxels.nbytes)
    if stored.kind == "f" and (bad := count - sum(int(np.isfinite(part).sum()) for part in _parts(voxels))):
        raise non_finite(path, bad)
    return voxels if tuple(scale) in ((0.0, 0.0), (1.0, 0.0)) else None


def _skip(read: Callable[[int], bytes], count: int) -> None:
    """Reads past so many bytes, fewer where the file ends."""
    while count > 0 and (chunk := read(min(count, _CHUNK))):
        count -= len(chunk)


def _length(read: Callable[[int], bytes]) -> int:
    """Bytes to the end of the file."""
    length = 0
    while chunk := read(_CHUNK):
        length += len(chunk)
    return length


def _fill(voxels: NDArray[Any], read: Callable[[int], bytes]) -> int:
    """Fills an array from a file, and reads on to the very end, where gzip keeps its checksum; the bytes
    that the array got."""
    room, held = voxels.view(np.uint8), 0
    while chunk := read(_CHUNK):
        part = np.frombuffer(chunk, np.uint8)[: room.size - held]
        room[held : held + part.size] = part
        held += part.size
    return held


def _parts(voxels: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Pieces of it, so that what is made of each is small."""
    return (voxels[start : start + _CHUNK] for start in range(0, voxels.size, _CHUNK))


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
