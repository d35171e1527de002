"""Where the voxels of a mask lie, against NumPy's and SimpleITK's own answers."""

import numpy as np
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from hnseg.imaging.masks import foreground_box, largest_component, positions

LABELS = st.builds(
    lambda seed, shape, share: (np.random.default_rng(seed).random(shape) < share).astype(np.uint8),
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 6)] * 3),
    st.sampled_from([0.0, 0.03, 0.2, 1.0]),
)


@given(LABELS)
def test_the_box_is_the_least_that_holds_them_all(array):
    box = foreground_box(array)
    index = np.argwhere(array)
    if not len(index):
        assert box is None
        return
    assert [side.start for side in box] == index.min(axis=0).tolist()
    assert [side.stop for side in box] == (index.max(axis=0) + 1).tolist()


@given(LABELS)
def test_positions_are_simpleitk_s(array):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0))
    expected = [image.TransformIndexToPhysicalPoint([int(i) for i in at[::-1]]) for at in np.argwhere(array)]
    np.testing.assert_allclose(positions(image), np.reshape(expected, (-1, 3)), atol=1e-12)


@given(LABELS)
def test_the_largest_component_is_simpleitk_s(array):
    image = sitk.GetImageFromArray(array)
    found = largest_component(image)
    if found is None:
        assert not array.any()
        return
    parts = sitk.ConnectedComponent(image, True)
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(parts)
    sizes = {label: statistics.GetNumberOfPixels(label) for label in statistics.GetLabels()}
    assert round(found.ml * 1000, 9) == max(sizes.values())
    boxes = [statistics.GetBoundingBox(label) for label, n in sizes.items() if n == max(sizes.values())]
    box = (*(side.start for side in found.box[::-1]), *(side.stop - side.start for side in found.box[::-1]))
    assert box in boxes
