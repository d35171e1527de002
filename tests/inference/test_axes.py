"""Networks whose axes are not (z, y, x)."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from hnseg.inference.predictor import Axes

RAS = Axes(order=(2, 1, 0), flip=(0, 1))
TURNED = Axes(order=(1, 2, 0), flip=(2,))  # not its own inverse
IMAGE = torch.arange(2 * 3 * 4 * 5.0).reshape(1, 2, 3, 4, 5)


def test_ras_is_that_of_simpleitk() -> None:
    turn = sitk.DICOMOrientImageFilter()
    turn.SetDesiredCoordinateOrientation("RAS")
    image = turn.Execute(sitk.GetImageFromArray(IMAGE[0, 0].numpy()))
    np.testing.assert_array_equal(
        RAS.to_network(IMAGE)[0, 0], sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    )


@pytest.mark.parametrize("axes", [Axes(), RAS, TURNED])
def test_the_way_back_undoes_the_way_there(axes: Axes) -> None:
    seen = axes.to_network(IMAGE)
    assert tuple(seen.shape[2:]) == axes.shape_to_network((3, 4, 5))
    assert axes.shape_from_network(axes.shape_to_network((3, 4, 5))) == (3, 4, 5)
    assert torch.equal(axes.from_network(seen), IMAGE)
