"""Image files in and out: the only door between disk, SimpleITK and numpy."""

import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import SimpleITK as sitk
from isal import igzip
from isal.igzip_lib import IsalError
from numpy.typing import NDArray

from hnseg.errors import HnsegError
from hnseg.files import place, temporary_beside
from hnseg.imaging.case import EXTENSIONS

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


LABELS = (0, 1, 2)  # background, GTVp, GTVn

# What matters is raised as an exception or checked here; the rest would only break progress bars.
sitk.ProcessObject.GlobalWarningDisplayOff()


def extension(path: Path) -> str:
    """The image extension of `path` (".nii.gz", ".nii" or ".mha"), or HnsegError naming those accepted."""
    for known in EXTENSIONS:
        if path.name.lower().endswith(known):
            return known
    raise HnsegError(f"{path}: '{path.suffix}' is not an image extension; use {', '.join(EXTENSIONS)}")


def read_image(path: Path, *, integers: bool = False) -> sitk.Image:
    """Read a CT or PET volume.

    Args:
        path: NIfTI or MetaImage file.
        integers: Leave int16 without a scale, as most CTs are stored, as it is: half the memory.

    Returns:
        A 3-D scalar image, float32 (or int16), in the file's own units (HU, SUV), every value finite.

    Raises:
        HnsegError: missing, empty, damaged or misnamed file; not 3-D; several values a voxel;
            impossible spacing; NaN or infinite values.
    """
    image = _read(path, sitk.sitkFloat32, as_stored=(sitk.sitkInt16,) if integers else ())
    if image.GetPixelID() == sitk.sitkInt16:
        return image
    values = sitk.GetArrayViewFromImage(image)
    # One pass without a temporary: a single NaN or infinity makes the sum non-finite.
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(values.sum(dtype=np.float64))
    if not finite:
        raise non_finite(path, int(values.size - np.isfinite(values).sum()))
    return image


def read_label(path: Path) -> sitk.Image:
    """Read a label map.

    Args:
        path: NIfTI or MetaImage file, integers or floats that are integers.

    Returns:
        A 3-D image, uint8, values 0 (background), 1 (GTVp) and 2 (GTVn) only.

    Raises:
        HnsegError: as `read_image`, or values other than 0, 1 and 2.
    """
    image = _read(path, sitk.sitkUnknown)
    values = sitk.GetArrayViewFromImage(image)
    # The least and the largest tell of whole numbers, hundreds of times faster than each voxel does.
    whole = values.dtype.kind in "iu" and LABELS[0] <= values.min() and values.max() <= LABELS[-1]
    if not whole and (foreign := ~np.isin(values, LABELS)).any():
        found = np.unique(values[foreign])
        shown = ", ".join(f"{value:.9g}" for value in found[:5]) + (", …" if len(found) > 5 else "")
        raise HnsegError(
            f"{path}: label values {shown}; only 0, 1 (GTVp) and 2 (GTVn) are allowed: remap them"
        )
    return sitk.Cast(image, sitk.sitkUInt8)


def read_mask(path: Path, ct: sitk.Image) -> sitk.Image:
    """Read a label map that must lie on the grid of `ct`.

    Raises:
        HnsegError: as `read_label`, or another grid.
    """
    mask = read_label(path)
    if not same_grid(mask, ct):
        raise HnsegError(f"{path}: is not on the CT's grid; resample it, nearest neighbour, or remove it")
    return mask


def write_image(image: sitk.Image, path: Path) -> None:
    """Write `image` compressed to `path`, whole or not at all, creating its folder where needed.

    Raises:
        HnsegError: an extension other than .nii.gz, .nii and .mha, or a folder that cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    place(stage_image(image, path, path.parent), path)


def stage_image(image: sitk.Image, path: Path, folder: Path) -> Path:
    """Write `image` compressed to a temporary file in `folder`, for `hnseg.files.place` to move to `path`.

    Returns:
        The file. `folder` is not made: where it is missing, it may be the wrong machine.

    Raises:
        HnsegError: as `write_image`.
    """
    # The temporary file must keep the extension, from which ITK takes the format.
    temporary = temporary_beside(folder / path.name, extension(path))
    try:
        sitk.WriteImage(image, str(temporary), useCompression=True)
        check_file(temporary)  # ITK passes over a full disk in silence where it writes NIfTI
    except BaseException as error:
        with suppress(OSError):  # it would hide the first error
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError | HnsegError):
            raise _unwritable(path, error) from error
        raise
    return temporary


def to_array(image: sitk.Image) -> np.ndarray:
    """The voxels of `image` as a new array (z, y, x)."""
    return sitk.GetArrayFromImage(image)


def from_array(array: np.ndarray, like: sitk.Image) -> sitk.Image:
    """An image of `array` (z, y, x) with the spacing, origin and direction of `like`.

    Raises:
        ValueError: the array's shape is not the image's size reversed.
    """
    if array.shape != like.GetSize()[::-1]:
        raise ValueError(f"array (z, y, x) {array.shape} does not fit image size (x, y, z) {like.GetSize()}")
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(like)
    return image


def same_grid(a: sitk.Image, b: sitk.Image, tolerance: float = 1e-3) -> bool:
    """Whether both images have one size and their corner voxels coincide.

    Args:
        a: A 3-D image.
        b: A 3-D image.
        tolerance: largest distance between corresponding corners, in voxels of `a`.
    """
    if a.GetSize() != b.GetSize():
        return False
    corners = [
        [0 if bit == "0" else size - 1 for bit, size in zip(f"{n:03b}", a.GetSize(), strict=True)]
        for n in range(8)
    ]
    there = [a.TransformPhysicalPointToContinuousIndex(b.TransformIndexToPhysicalPoint(c)) for c in corners]
    return bool(np.abs(np.subtract(there, corners)).max() <= tolerance)


def _read(path: Path, pixel_type: int, as_stored: Sequence[int] = ()) -> sitk.Image:
    """Check the bytes and the header, then read the voxels as `pixel_type` (sitkUnknown: as stored).

    Those that come as one of the types `as_stored` stay so.
    """
    extension(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        if path.is_dir():
            raise HnsegError(f"{path}: is a folder; name a file ({', '.join(EXTENSIONS)})")
        if path.stat().st_size == 0:
            raise HnsegError(f"{path}: the file is empty; copy or convert it again")
        voxels = check_file(path)
        reader.ReadImageInformation()
        _check_header(path, reader)
        if reader.GetPixelID() in as_stored:
            pixel_type = sitk.sitkUnknown
        if voxels is None:
            reader.SetOutputPixelType(pixel_type)
            return reader.Execute()
        image = _image_of(voxels, reader)
        del voxels  # not both of them beside a third
        return image if pixel_type in (sitk.sitkUnknown, image.GetPixelID()) else sitk.Cast(image, pixel_type)
    except FileNotFoundError as error:
        raise HnsegError(f"{path}: no such file; check the path") from error
    except (OSError, RuntimeError) as error:
        reason = _condense(error)
        raise HnsegError(f"{path}: cannot be read ({reason}); copy or convert it again") from error


def _image_of(voxels: np.ndarray, reader: Any) -> sitk.Image:
    """What the reader would give, of voxels that have been read already."""
    native = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    image = sitk.GetImageFromArray(native.reshape(reader.GetSize()[::-1]))
    image.SetSpacing(reader.GetSpacing())
    image.SetOrigin(reader.GetOrigin())
    image.SetDirection(reader.GetDirection())
    return image


def _check_header(path: Path, reader: Any) -> None:
    """Refuse what is not one finite 3-D scalar volume before its voxels are read."""
    size, spacing = reader.GetSize(), reader.GetSpacing()
    if len(size) != 3 or min(size) < 2:
        raise HnsegError(f"{path}: size {' x '.join(map(str, size))} is not one 3-D volume; give one")
    if reader.GetNumberOfComponents() != 1:
        count = reader.GetNumberOfComponents()
        raise HnsegError(f"{path}: {count} values a voxel (vector, RGB or complex); give one scalar image")
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise HnsegError(f"{path}: spacing {spacing} mm is impossible; correct the header")
    if not np.isfinite([*reader.GetOrigin(), *reader.GetDirection()]).all():
        raise HnsegError(f"{path}: origin or direction is not finite; correct the header")


def _unwritable(path: Path, error: Exception) -> HnsegError:
    return HnsegError(f"{path}: cannot be written ({_condense(error)}); check the folder and its space")


def _condense(error: Exception) -> str:
    """The telling line of an error: ITK puts it last, after addresses and source locations."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, HnsegError):  # about the temporary file
        return str(error).partition(": ")[2].partition(";")[0]
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Reason:")]
    last = lines[-1] if lines else "no reason given"
    return re.sub(r"^.*ERROR:\s*|\w*\(?0x[0-9a-f]+\)?:\s*", "", last).strip().rstrip(".!")
