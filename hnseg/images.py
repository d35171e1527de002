"""Image files in and out: the only door between disk, SimpleITK and numpy.

Arrays are (z, y, x); points, sizes and spacings in patient space are (x, y, z) in LPS millimetres,
both as SimpleITK has them.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from hnseg.cases import EXTENSIONS
from hnseg.errors import HnsegError
from hnseg.files import place, temporary_beside
from hnseg.integrity import check_file, non_finite

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
