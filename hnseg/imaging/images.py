"""Image files in and out: the only door between disk, SimpleITK and numpy."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from isal import igzip
from isal.igzip_lib import IsalError
from nibabel.spatialimages import HeaderDataError

from hnseg.errors import HnsegError
from hnseg.files import replacing
from hnseg.imaging.case import EXTENSIONS

LABELS = (0, 1, 2)  # background, GTVp, GTVn
MAX_VOXELS = 1 << 30  # 1024³, 4 GiB in memory; whole-body CTs hold half of that
_CHUNK = 1 << 24  # bytes

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
        A 3-D scalar image, float32 (or int16), in the file's own units (HU, SUV).

    Raises:
        HnsegError: The file is missing, damaged or misnamed; it is not one 3-D scalar volume of possible
            spacing; or it has NaN or infinite values.
    """
    image = _read(path)
    if integers and image.GetPixelID() == sitk.sitkInt16:
        return image
    values = sitk.GetArrayViewFromImage(image)
    # One pass without a temporary: a single NaN or infinity makes the sum non-finite.
    with np.errstate(invalid="ignore", over="ignore"):
        finite = values.dtype.kind != "f" or np.isfinite(values.sum(dtype=np.float64))
    if not finite:
        count = int(values.size - np.isfinite(values).sum())
        raise HnsegError(
            f"{path}: {count} NaN or infinite values; replace them (air is -1000 HU, no uptake 0 SUV)"
        )
    return image if image.GetPixelID() == sitk.sitkFloat32 else sitk.Cast(image, sitk.sitkFloat32)


def read_label(path: Path) -> sitk.Image:
    """Read a label map as a 3-D image, uint8: 0 (background), 1 (GTVp) and 2 (GTVn).

    Raises:
        HnsegError: As `read_image`, or values other than 0, 1 and 2.
    """
    image = _read(path)
    values = sitk.GetArrayViewFromImage(image)
    # Of integers the least and the largest suffice, hundreds of times faster than a look at each voxel.
    whole = values.dtype.kind in "iu" and LABELS[0] <= values.min() and values.max() <= LABELS[-1]
    if not whole and (foreign := ~np.isin(values, LABELS)).any():
        found = np.unique(values[foreign])
        named = ", ".join(f"{value:.9g}" for value in found[:5]) + (", …" if len(found) > 5 else "")
        raise HnsegError(
            f"{path}: label values {named}; only 0, 1 (GTVp) and 2 (GTVn) are allowed: remap them"
        )
    return sitk.Cast(image, sitk.sitkUInt8)


def read_mask(path: Path, ct: sitk.Image) -> sitk.Image:
    """Read a label map onto the grid of `ct`, which a rounded header may miss by a hundredth of a voxel.

    Raises:
        HnsegError: It is on another grid.
    """
    mask = read_label(path)
    if not same_grid(mask, ct):
        raise HnsegError(f"{path}: is not on the CT's grid; resample it, nearest neighbour, or remove it")
    mask.CopyInformation(ct)
    return mask


def write_image(image: sitk.Image, path: Path) -> None:
    """Write `image` compressed to `path`, whole or not at all, creating its folder where needed.

    Raises:
        HnsegError: An extension other than .nii.gz, .nii and .mha, or a folder that cannot be written.
    """
    extension(path)
    with replacing(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
            _read(temporary)  # ITK passes over a full disk in silence where it writes NIfTI
        except (RuntimeError, HnsegError) as error:
            reason = "cut short" if isinstance(error, HnsegError) else _reason(error)
            raise HnsegError(f"{path}: cannot be written ({reason}); check the disk's space") from error


def to_array(image: sitk.Image) -> np.ndarray:
    """The voxels of `image` as a new array (z, y, x)."""
    return sitk.GetArrayFromImage(image)


def from_array(array: np.ndarray, like: sitk.Image) -> sitk.Image:
    """An image of `array` (z, y, x) with the spacing, origin and direction of `like`."""
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(like)
    return image


def part_of(image: sitk.Image, array: np.ndarray, first: Sequence[int]) -> sitk.Image:
    """An image of `array` (z, y, x) that lies in `image` from a voxel (x, y, z) on.

    To slice `image` takes a millisecond, which adds up over the components of a mask.
    """
    part = sitk.GetImageFromArray(array)
    part.SetSpacing(image.GetSpacing())
    part.SetDirection(image.GetDirection())
    part.SetOrigin(image.TransformIndexToPhysicalPoint([int(i) for i in first]))
    return part


def digest_voxels(ct: sitk.Image) -> str:
    """Knows a CT again under another name or in another file: SHA-256 of its size and voxels in whole HU."""
    array = sitk.GetArrayViewFromImage(ct)
    voxels = np.ascontiguousarray(array if array.dtype.kind in "iu" else np.rint(array), np.int16)
    digest = hashlib.sha256(repr(voxels.shape).encode())
    digest.update(voxels.data)
    return digest.hexdigest()[:16]


def same_grid(a: sitk.Image, b: sitk.Image, tolerance: float = 0.05) -> bool:
    """Whether two images have one size and coinciding corner voxels, within a tolerance in voxels of `a`."""
    if a.GetSize() != b.GetSize():
        return False
    corners = list(product(*((0, n - 1) for n in a.GetSize())))
    in_a = [a.TransformPhysicalPointToContinuousIndex(b.TransformIndexToPhysicalPoint(c)) for c in corners]
    return bool(np.abs(np.subtract(in_a, corners)).max() <= tolerance)


def _read(path: Path) -> sitk.Image:
    """A 3-D scalar image with the voxels as they are stored (float32 where the file scales them)."""
    kind = extension(path)
    try:
        return _read_metaimage(path) if kind == ".mha" else _read_nifti(path)
    except (EOFError, zlib.error, IsalError, igzip.BadGzipFile) as error:  # type: ignore[misc]  # its stub
        raise HnsegError(f"{path}: cut short or damaged ({error}); copy or convert it again") from error
    except OSError as error:
        raise HnsegError(f"{path}: cannot be read ({_reason(error)}); copy or convert it again") from error


def _read_nifti(path: Path) -> sitk.Image:
    """NIfTI-1 or NIfTI-2 in one file, packed by gzip or not."""
    with ExitStack() as stack:
        file: Any = stack.enter_context(path.open("rb"))
        if file.peek(2)[:2] == b"\x1f\x8b":  # gzip's magic number
            file = stack.enter_context(igzip.open(file))  # unpacks twice as fast as zlib
        try:
            kinds = (nib.Nifti1Header, nib.Nifti2Header)
            known = [kind for kind in kinds if kind.may_contain_header(file.peek(540)[:540])]
            if not known:
                raise ValueError("neither NIfTI-1 nor NIfTI-2")
            header = known[0].from_fileobj(file, check=False)
            affine = np.diag((-1.0, -1.0, 1.0, 1.0)) @ header.get_best_affine()  # NIfTI's RAS to LPS
            shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), header.get_data_offset()
        except (HeaderDataError, KeyError, ValueError) as error:
            raise HnsegError(f"{path}: its header is not NIfTI; copy or convert it again") from error
        slope, inter = (float(header[field]) for field in ("scl_slope", "scl_inter"))
        if header["bitpix"] != 8 * dtype.itemsize or offset < header.sizeof_hdr + 4:
            raise HnsegError(
                f"{path}: its header contradicts itself (datatype {header['datatype']} with bitpix "
                f"{header['bitpix']}, voxels from byte {offset} on); convert it again"
            )
        if slope == 0 and inter != 0:
            raise HnsegError(f"{path}: scl_slope 0 with scl_inter {inter:g} is no scale; convert it again")
        if dtype.kind not in "iuf":
            raise HnsegError(f"{path}: several values a voxel (RGB or complex); give one scalar image")
        spacing = np.array(header.get_zooms()[:3], np.float64)
        _require_volume(path, shape[:3] if max(shape[3:], default=1) < 2 else shape, spacing.tolist())
        steps = affine[:3, :3]  # mm from voxel to voxel along (i, j, k), a column each
        axes = steps / np.linalg.norm(steps, axis=0)
        if not np.allclose(steps.T @ steps, np.diag(spacing**2), rtol=1e-3, atol=1e-3 * spacing.min() ** 2):
            raise HnsegError(f"{path}: its axes are not orthonormal at its spacing; resample it")
        needed = prod(shape[:3]) * dtype.itemsize
        file.seek(offset)
        content = file.read(needed)
        if len(content) < needed:
            raise EOFError(f"{len(content)} of {needed} bytes of voxels")
        while file.read(_CHUNK):  # to the very end, where gzip keeps its checksum
            pass
    voxels = np.frombuffer(content, dtype).reshape(shape[2::-1])  # (z, y, x)
    slope, inter = header.get_slope_inter()
    if (slope, inter) not in ((None, None), (1, 0)):
        voxels = (voxels * np.float64(slope) + np.float64(inter)).astype(np.float32)
    image = sitk.GetImageFromArray(voxels.astype(voxels.dtype.newbyteorder("="), copy=False))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection(axes.ravel().tolist())
    return image


# MetaIO's types of an element, whose long has four bytes everywhere.
_ELEMENTS = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4"},
    **{"MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
_HEADER = re.compile(rb"((?:[^\n]*\n)*?)ElementDataFile *= *LOCAL *\r?\n")


def _read_metaimage(path: Path) -> sitk.Image:
    """MetaImage in one file: lines of a header, then the voxels, which zlib may have packed.

    ITK's own reader ends the process on some headers, and reads noise where CompressedDataSize is wrong.
    """
    with path.open("rb") as file:
        header = _HEADER.match(file.read(1 << 14))
        if header is None:
            raise HnsegError(f"{path}: cut short, or its header is not MetaImage; copy it again")
        fields = _fields(path, header[1].decode("latin-1"))
        file.seek(header.end())
        content = file.read()

    def numbers(default: str, *keys: str) -> list[float]:
        given = (fields[key] for key in keys if key in fields)
        return [float(number) for number in next(given, default).split()]

    try:
        size = [int(n) for n in fields["DimSize"].split()]
        first = numbers("0 0 0", "Offset", "Origin", "Position")
        steps = numbers("1 1 1", "ElementSpacing", "ElementSize")
        matrix = numbers("1 0 0 0 1 0 0 0 1", "TransformMatrix", "Rotation", "Orientation")
        dtype = np.dtype(_ELEMENTS[fields["ElementType"]])
        axes = np.reshape(matrix, (3, 3)) if len(size) == 3 else np.eye(3)  # along i, j, k, a row each
        big = "True" in (fields.get("BinaryDataByteOrderMSB"), fields.get("ElementByteOrderMSB"))
    except (KeyError, ValueError) as error:
        raise HnsegError(f"{path}: its MetaImage header lacks {error}; convert it again") from error
    if (count := fields.get("ElementNumberOfChannels", "1")) != "1":
        raise HnsegError(f"{path}: {count} values a voxel (vector, RGB or complex); give one scalar image")
    if fields.get("BinaryData", "True") != "True" or fields.get("HeaderSize", "0") != "0":
        raise HnsegError(f"{path}: its voxels are text, or do not follow the header; convert it again")
    _require_volume(path, size, steps)
    if not np.allclose(axes @ axes.T, np.eye(3), atol=1e-3):
        raise HnsegError(f"{path}: its axes are not orthonormal; resample it")
    needed = prod(size) * dtype.itemsize
    if fields.get("CompressedData") == "True":
        unpacking = zlib.decompressobj(wbits=47)  # zlib or gzip, which carry a checksum
        content = unpacking.decompress(content, needed + 1)
        if len(content) == needed and not unpacking.eof:  # the checksum is still to be read
            content += unpacking.decompress(unpacking.unconsumed_tail, 1)
    if len(content) != needed:
        raise EOFError(f"{len(content)} of {needed} bytes of voxels")
    voxels = np.frombuffer(content, dtype.newbyteorder(">" if big else "<")).reshape(size[::-1])
    image = sitk.GetImageFromArray(voxels.astype(dtype, copy=False))
    image.SetSpacing(steps)
    image.SetOrigin(first)
    image.SetDirection(axes.T.ravel().tolist())
    return image


def _fields(path: Path, header: str) -> dict[str, str]:
    """Key → value of the lines of a MetaImage header."""
    fields: dict[str, str] = {}
    for line in header.splitlines():
        key, sign, value = (part.strip() for part in line.partition("="))
        if not sign or key in fields:
            raise HnsegError(f"{path}: its header is not MetaImage (line {line[:40]!r}); convert it again")
        fields[key] = value
    return fields


def _require_volume(path: Path, size: Sequence[int], spacing: Sequence[float]) -> None:
    """Refuse what is not one 3-D volume of a scan's size before its voxels are read."""
    sides = " x ".join(map(str, size))
    if len(size) != 3 or min(size) < 2:
        raise HnsegError(f"{path}: size {sides} is not one 3-D volume; give one")
    if prod(size) > MAX_VOXELS:
        raise HnsegError(f"{path}: size {sides} is larger than any scan; correct the header")
    if not all(np.isfinite(step) and step > 0 for step in spacing):
        steps = ", ".join(f"{step:g}" for step in spacing)
        raise HnsegError(f"{path}: spacing ({steps}) mm is impossible; correct the header")


def _reason(error: Exception) -> str:
    """The telling line of an error: ITK puts it last, after addresses and source locations."""
    if isinstance(error, OSError):
        return error.strerror or " ".join(str(error).split())
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Reason:")]
    last = lines[-1] if lines else type(error).__name__
    return re.sub(r"^.*ERROR:\s*|\w*\(?0x[0-9a-f]+\)?:\s*", "", last).strip().rstrip(".!")
