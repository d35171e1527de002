"""Images are read whole or refused by name, and written whole or not at all."""

import gzip
import re
import resource
import struct
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import ct_image, label_image, volume

from hnseg.errors import HnsegError
from hnseg.imaging.images import from_array, read_image, read_label, same_grid, to_array, write_image

FORMATS = [".nii.gz", ".nii", ".mha"]


def noise(dtype: type = np.float32) -> sitk.Image:
    values = np.random.default_rng(0).normal(0, 100, (12, 14, 16)).astype(dtype)
    return volume(values, (1.5, 2, 3), (-10, 20, -300))


def refusal(path: Path, read=read_image) -> str:
    """The one line with which `path` is refused; it must name the file."""
    with pytest.raises(HnsegError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


STORED = [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64]


@pytest.mark.parametrize("ext", FORMATS)
@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("integers", [False, True])
def test_reads_of_every_type_what_simpleitk_reads(tmp_path, ext, dtype, integers):
    path = tmp_path / f"a{ext}"
    original = sitk.Cast(sitk.Abs(noise()), volume(np.zeros((2, 2, 2), dtype), (1, 1, 1)).GetPixelID())
    original.SetDirection(sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.3).GetMatrix())
    sitk.WriteImage(original, str(path), useCompression=True)
    image, expected = read_image(path, integers=integers), sitk.ReadImage(str(path), sitk.sitkFloat32)
    as_stored = integers and dtype == np.int16
    assert image.GetPixelID() == (sitk.sitkInt16 if as_stored else sitk.sitkFloat32)
    np.testing.assert_array_equal(to_array(image), to_array(expected))
    for side in ("Spacing", "Origin", "Direction", "Size"):
        assert getattr(image, f"Get{side}")() == getattr(expected, f"Get{side}")()


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_reads_either_version_order_of_bytes_and_scale(tmp_path, kind, order, slope):
    stored = to_array(noise(np.int16)).T
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(f"{order}i2"))
    affine = np.diag((-1.5, -2.0, 3.0, 1.0))  # RAS: x to the left, y to the back
    affine[:3, 3] = 10, -20, -300
    image = kind(stored, affine, header)
    image.header.set_slope_inter(slope, 3.25 if slope != 1 else 0)
    nib.save(image, tmp_path / "a.nii")
    read = read_image(tmp_path / "a.nii", integers=True)
    assert read.GetPixelID() == (sitk.sitkInt16 if slope == 1 else sitk.sitkFloat32)
    assert (read.GetSpacing(), read.GetOrigin()) == ((1.5, 2, 3), (-10, 20, -300))
    np.testing.assert_allclose(to_array(read), np.asarray(nib.load(tmp_path / "a.nii").dataobj).T, atol=1e-3)


def test_what_a_header_promises_beyond_the_file_takes_no_memory(tmp_path):
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(noise(np.float64), str(tmp_path / "a.nii"))
    stored = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<3h", stored, 42, 1024, 1024, 1024)
    path.write_bytes(gzip.compress(bytes(stored)))
    tracemalloc.start()
    assert "cut short" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


@pytest.mark.parametrize("ext", FORMATS)
def test_writes_what_simpleitk_reads_and_leaves_nothing_else(tmp_path, ext):
    path = tmp_path / "new" / "folder" / f"a{ext}"
    write_image(noise(), path)
    again = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(noise()))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("ext", FORMATS)
def test_a_file_that_does_not_fit_keeps_the_old_one(tmp_path, ext):
    """ITK writes what fits of a NIfTI, and says nothing."""
    path = tmp_path / f"a{ext}"
    write_image(noise(), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(HnsegError, match=r"cannot be written \("):
            write_image(noise(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_below_a_file_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HnsegError, match=r"file/a\.nii\.gz: cannot be written"):
        write_image(noise(), tmp_path / "file" / "a.nii.gz")


@pytest.mark.parametrize("ext", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_file_cut_short_is_refused(tmp_path, ext, share):
    # ITK itself fills what is missing of a NIfTI with zeros.
    sitk.WriteImage(noise(), str(tmp_path / f"a{ext}"), useCompression=True)
    whole = (tmp_path / f"a{ext}").read_bytes()
    (tmp_path / f"b{ext}").write_bytes(whole[: int(len(whole) * share)])
    assert any(word in refusal(tmp_path / f"b{ext}") for word in ("cut short", "header is not"))


@pytest.mark.parametrize("ext", [".nii.gz", ".mha"])
def test_a_damaged_compressed_file_is_refused(tmp_path, ext):
    path = tmp_path / f"a{ext}"
    sitk.WriteImage(noise(), str(path), useCompression=True)
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 0xFF
    path.write_bytes(content)
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("ext", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_that_are_not_finite_are_counted(tmp_path, ext, value, dtype):
    # ITK itself turns those of a NIfTI into 0.
    values = np.zeros((4, 5, 6), dtype)
    values[1, 2, :3] = value
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / f"a{ext}"))
    assert "3 NaN or infinite values" in refusal(tmp_path / f"a{ext}")


@pytest.mark.parametrize("ext", FORMATS)
@pytest.mark.parametrize(
    ("values", "is_vector", "telling"),
    [
        (np.zeros((5, 6)), False, r"6 x 5 is not one 3-D volume"),
        (np.zeros((2, 5, 6, 7)), False, r"7 x 6 x 5 x 2 is not one 3-D volume"),
        (np.zeros((5, 6, 7, 3)), True, r"3 values a voxel|7 x 6 x 5 x 1 x 3 is not one 3-D volume"),
        (np.zeros((5, 6, 7), np.complex64), False, r"is not one 3-D volume|values a voxel"),
    ],
    ids=["2-D", "4-D", "RGB", "complex"],
)
def test_what_is_not_one_scalar_volume_is_refused(tmp_path, ext, values, is_vector, telling):
    path = tmp_path / f"a{ext}"
    if not np.iscomplexobj(values):
        values = values.astype(np.uint8)
    elif ext == ".mha":
        pytest.skip("MetaImage has no complex voxels")
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=is_vector), str(path))
    assert re.search(telling, refusal(path))


def test_sizes_that_no_scan_has_are_refused_before_room_is_made_for_them(tmp_path):
    path = tmp_path / "a.nii"
    sitk.WriteImage(noise(), str(path))
    content = bytearray(path.read_bytes())
    content[42:48] = struct.pack("<3h", 32767, 32767, 32767)  # dim[1:4]
    path.write_bytes(content)
    assert "32767 x 32767 x 32767 is larger than any scan" in refusal(path)
    path = tmp_path / "a.mha"
    sitk.WriteImage(noise(), str(path))
    path.write_bytes(path.read_bytes().replace(b"DimSize = 16 14 12", b"DimSize = 99999 99999 99999"))
    assert "is larger than any scan" in refusal(path)


@pytest.mark.parametrize("step", [0.0, -1.0, np.nan, np.inf])
def test_an_impossible_nifti_spacing_is_refused(tmp_path, step):
    path = tmp_path / "a.nii"
    sitk.WriteImage(noise(), str(path))
    content = bytearray(path.read_bytes())
    content[80:84] = struct.pack("<f", step)  # pixdim[1]
    path.write_bytes(content)
    assert "mm is impossible" in refusal(path)


def test_a_sheared_nifti_is_refused(tmp_path):
    path = tmp_path / "a.nii"
    sitk.WriteImage(noise(), str(path))
    content = bytearray(path.read_bytes())
    content[252:256] = struct.pack("<2h", 0, 1)  # qform and sform codes: the sform alone
    content[280:328] = struct.pack("<12f", 1, 0.5, 0, 0, 0, 2, 0, 0, 0, 0, 3, 0)
    path.write_bytes(content)
    assert "orthonormal" in refusal(path)


def test_files_that_are_no_images_are_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "none.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    assert "Is a directory" in refusal(tmp_path / "folder.nii.gz")
    (tmp_path / "a.txt").write_text("x")
    assert "'.txt' is not an image extension; use .nii.gz, .nii, .mha" in refusal(tmp_path / "a.txt")
    for ext in FORMATS:
        path = tmp_path / f"a{ext}"
        for content in (b"", np.random.default_rng(1).bytes(4000)):
            path.write_bytes(content)
            assert "its header is not" in refusal(path)


@pytest.mark.parametrize("ext", FORMATS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_labels_come_as_uint8(tmp_path, ext, dtype):
    values = sitk.GetArrayFromImage(label_image())
    sitk.WriteImage(sitk.GetImageFromArray(values.astype(dtype)), str(tmp_path / f"a{ext}"))
    label = read_label(tmp_path / f"a{ext}")
    assert label.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(to_array(label), values)


@pytest.mark.parametrize(
    ("dtype", "value", "shown"),
    [
        (np.uint8, 3, "3"),
        (np.int16, -1, "-1"),
        (np.float32, 0.5, "0.5"),
        (np.float64, 0.9999999, "0.9999999"),
    ],
)
def test_other_label_values_are_named(tmp_path, dtype, value, shown):
    values = np.zeros((4, 5, 6), dtype)
    values[0, 0, :2] = 1, value
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "a.nii.gz"))
    assert f"label values {shown};" in refusal(tmp_path / "a.nii.gz", read_label)


def test_arrays_are_zyx_and_keep_the_geometry():
    image = ct_image()
    array = to_array(image)
    assert array.shape == image.GetSize()[::-1]
    assert array[3, 2, 1] == image.GetPixel(1, 2, 3)
    assert same_grid(from_array(array, image), image)
    with pytest.raises(ValueError, match="does not fit"):
        from_array(array.T[1:], image)


def test_same_grid_sees_every_part_of_the_geometry():
    image = ct_image()
    for change in ("SetOrigin", "SetSpacing"):
        other = sitk.Image(image)
        getattr(other, change)([value + 0.01 for value in getattr(other, change.replace("Set", "Get"))()])
        assert not same_grid(image, other)
    other = sitk.Image(image)
    other.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert not same_grid(image, other)
    assert not same_grid(image, image[:, :, 1:])


def test_same_grid_forgives_what_nifti_rounds(tmp_path):
    image = sitk.Image(30, 40, 50, sitk.sitkUInt8)
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.1, -0.2, 3.1)
    image.SetDirection(turn.GetMatrix())
    image.SetSpacing((0.9765625, 0.9765625, 2.7))
    image.SetOrigin((-249.51171875, 411.3, -1287.123))
    write_image(image, tmp_path / "a.nii.gz")
    write_image(image, tmp_path / "a.mha")
    assert same_grid(read_label(tmp_path / "a.nii.gz"), read_label(tmp_path / "a.mha"))
