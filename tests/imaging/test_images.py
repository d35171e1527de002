"""Images are read whole or refused by name, and written whole or not at all."""

import resource
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import ct_image, volume

from hnseg.errors import HnsegError
from hnseg.imaging.images import (
    from_array,
    read_image,
    read_label,
    read_mask,
    same_grid,
    to_array,
    write_image,
)

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


def test_a_sheared_nifti_is_refused(tmp_path):
    path = tmp_path / "a.nii"
    sitk.WriteImage(noise(), str(path))
    content = bytearray(path.read_bytes())
    content[252:256] = struct.pack("<2h", 0, 1)  # qform and sform codes: the sform alone
    content[280:328] = struct.pack("<12f", 1, 0.5, 0, 0, 0, 2, 0, 0, 0, 0, 3, 0)
    path.write_bytes(content)
    assert "orthonormal" in refusal(path)


def edit(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"NDims = 3", b"NDims = 3\nNDims = 2", "NDims = 2"),  # ends a process of ITK
        (b"ObjectType = Image", b"N" * 300 + b" = Image\nno sign", "no sign"),
        (b"TransformMatrix = 1 0 0 0 1 0", b"TransformMatrix = 1 0 0 0.5 1 0", "orthonormal"),
        (b"TransformMatrix = 1 0 0", b"TransformMatrix = 2 0 0", "orthonormal"),
        (b"DimSize = 16 14 12", b"DimSize = 16 14 13", "cut short"),
        (b"DimSize = 16 14 12", b"DimSize = 16 14 11", "cut short or damaged"),
        (b"ElementType = MET_FLOAT", b"ElementType = MET_STRING", "MET_STRING"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_metaimage_whose_header_is_wrong_is_refused(tmp_path, old, new, words, packed):
    path = tmp_path / "a.mha"
    sitk.WriteImage(noise(), str(path), useCompression=packed)
    assert words in refusal(edit(path, old, new))


@pytest.mark.parametrize("change", [b"CompressedDataSize = 17\n", b""])
def test_a_metaimage_is_read_whole_whatever_the_size_that_its_header_says(tmp_path, change):
    """ITK reads noise, or nothing; the stream has its own end and checksum."""
    path = tmp_path / "a.mha"
    sitk.WriteImage(noise(), str(path), useCompression=True)
    (line,) = [line for line in path.read_bytes().splitlines(True) if line.startswith(b"CompressedDataSize")]
    np.testing.assert_array_equal(to_array(read_image(edit(path, line, change))), to_array(noise()))


def test_a_metaimage_of_either_order_of_bytes_is_read(tmp_path):
    path = tmp_path / "a.mha"
    sitk.WriteImage(noise(np.int16), str(path))
    head, mark, voxels = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")
    head = head.replace(b"BinaryDataByteOrderMSB = False", b"BinaryDataByteOrderMSB = True")
    path.write_bytes(head + mark + np.frombuffer(voxels, "<i2").astype(">i2").tobytes())
    np.testing.assert_array_equal(to_array(read_image(path)), to_array(noise(np.int16)))


@pytest.mark.parametrize(
    ("offset", "field", "words"),
    [
        (72, struct.pack("<h", 8), "bitpix 8"),  # half a CT would be read
        (108, struct.pack("<f", 300), "from byte 300"),
        (112, struct.pack("<2f", 0, 5), "scl_slope 0 with scl_inter 5"),
    ],
)
def test_a_nifti_whose_header_contradicts_itself_is_refused(tmp_path, offset, field, words):
    path = tmp_path / "a.nii"
    sitk.WriteImage(noise(), str(path))
    content = path.read_bytes()
    path.write_bytes(content[:offset] + field + content[offset + len(field) :])
    assert words in refusal(path)


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 3), (np.int16, -1), (np.float64, 0.9999999)])
def test_other_label_values_are_named(tmp_path, dtype, value):
    values = np.zeros((4, 5, 6), dtype)
    values[0, 0, :2] = 1, value
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "a.nii.gz"))
    assert f"label values {value};" in refusal(tmp_path / "a.nii.gz", read_label)


def test_arrays_are_zyx_and_keep_the_geometry():
    image = ct_image()
    array = to_array(image)
    assert array.shape == image.GetSize()[::-1]
    assert array[3, 2, 1] == image.GetPixel(1, 2, 3)
    assert same_grid(from_array(array, image), image)


def test_a_mask_whose_header_was_rounded_lies_on_the_ct(tmp_path):
    ct = ct_image()
    mask = sitk.Cast(ct * 0, sitk.sitkUInt8)
    mask.SetOrigin([value + 0.02 for value in ct.GetOrigin()])
    sitk.WriteImage(mask, str(tmp_path / "a.nii.gz"))
    read = read_mask(tmp_path / "a.nii.gz", ct)
    assert (read.GetOrigin(), read.GetSpacing()) == (ct.GetOrigin(), ct.GetSpacing())


def test_same_grid_sees_every_part_of_the_geometry():
    image = ct_image()
    for change in ("SetOrigin", "SetSpacing"):
        other = sitk.Image(image)
        getattr(other, change)([value + 0.2 for value in getattr(other, change.replace("Set", "Get"))()])
        assert not same_grid(image, other)
    other = sitk.Image(image)
    other.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert not same_grid(image, other)
    assert not same_grid(image, image[:, :, 1:])
