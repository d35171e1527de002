"""What a network is shown: grid, sampling, scaling and normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hnseg.cli.planning.pair import Pair
from hnseg.data.intensity import InputSpec, Normalise
from hnseg.data.resample import label_to_grid, to_grid
from hnseg.imaging.grid import Grid
from hnseg.job import jitter_mm

Properties = dict[str, Any]

_SCHEMES = {
    "zscore": "Z-Score (no mask)",
    "ct": "CT Normalization",
    "range": "Range normalization, sigmoid",
    "sigmoid": "sigmoid of (x - min) / std",
}
_ORDERS = {0: "Nearest-neighbor (order=0)", 1: "linear (order=1)", 3: "B-spline (order=3)"}
_CENTRES = {
    "truth": "on the centroid of the lesion labels",
    "coarse": "on the centroid of the coarse prediction",
}
_CLASSES = {"GTVp": "tumor", "GTVn": "lymph_node"}  # in the paper's words
_PET = {"minmax": "min-max over the crop", "suv": "clipped at a fixed SUV", "raw": "none"}


def read_volume(pair: Pair) -> Properties:
    """Properties of the paper's tables."""
    stage, spec = pair.stage, pair.spec
    voxel = list(reversed(stage.spacing))
    channels = spec.channel_names
    ct, pet = (sum(name.startswith(modality) for name in channels) for modality in ("CT", "PET"))
    return {
        "Preprocessor": type(spec).__name__,
        "Median Image Size": list(stage.shape),  # every volume has the grid's size, and so has their median
        "Spacing": voxel,
        "Spacing (Median / Lower / Upper)": voxel,
        "Normalization": [_SCHEMES.get(one.scheme, one.scheme) for one in spec.normalise],
        "Resampling": _resampling(),
        "Intensity Bounds": _bounds(spec.normalise[0]),
        "Input Modality": {"CT": ct, "PET": pet},
        "Input": channels,
        "Output Classes": [*(_CLASSES.get(name, name) for name in stage.classes), "background"],
        "Grid": {"size": list(stage.size), "mm": list(stage.spacing), "placed": _placed(pair)},
        "Sampled from": _source(pair),
        **_scaling(spec),
        "Padded to": spec.pad_to and list(spec.pad_to),
        "Data Augmentation": _augmentation(pair),
        "Folds": pair.config["data"]["folds"],
    }


def interpolation_order(sample: Callable[[sitk.Image, Grid], NDArray[Any]]) -> int:
    """The degree up to which an interpolator reproduces polynomials between voxels.

    0 is nearest neighbour, 1 linear, 3 the cubic B-spline.

    Args:
        sample: (image of voxels of 1 mm, grid) → array on the grid.
    """
    position = np.arange(-32.0, 32.0)
    grid = Grid.centred((0.5, 0.0, 0.0), (1, 1, 1), (1.0, 1.0, 1.0))
    degree = 0
    while degree < 5:
        line = 4 * position ** (degree + 1) + 128
        image = sitk.GetImageFromArray(np.broadcast_to(line, (16, 16, 64)).copy())
        image.SetOrigin((-32.0, -8.0, -8.0))
        if abs(float(sample(image, grid).item()) - (4 * 0.5 ** (degree + 1) + 128)) > 0.05:
            break
        degree += 1
    return degree


def _resampling() -> Properties:
    def as_label(image: sitk.Image, grid: Grid) -> NDArray[np.uint8]:
        return label_to_grid(sitk.Cast(sitk.Clamp(image, sitk.sitkFloat64, 0, 255), sitk.sitkUInt8), grid)

    data = interpolation_order(lambda image, grid: to_grid(image, grid, fill=0.0))
    return {"data": _ORDERS[data], "segmentation": _ORDERS[interpolation_order(as_label)]}


def _source(pair: Pair) -> str:
    sampling = pair.spec.sampling
    source = {"study": "the original study", "head_crop": "the windowed head crop"}[sampling.source]
    smoothed = ", smoothed" if pair.stage.antialias else ""
    return source + smoothed + (", -1 beyond the scan" if sampling.outside == "minus_one" else "")


def _scaling(spec: InputSpec) -> Properties:
    """The stage's own scaling of CT and PET; what comes from the head crop was scaled there."""
    crop, again = spec.sampling.source == "head_crop", spec.minmax_again
    window = spec.sampling.ct_window if crop else spec.ct_window
    pet = "min-max over the head crop, then 0 to 5" if crop else _PET[spec.pet]
    return {
        "CT Window": {
            "HU": window and list(window),
            "scaled to": list(spec.ct_range),
            "again in the ROI": again,
        },
        "PET": {"rule": pet, "scaled to": None if pet == "none" else [0, 1], "again in the ROI": again},
    }


def _bounds(ct: Normalise) -> list[float | None] | str:
    """Where the CT's range begins and ends; a fold's percentiles are not known before it is prepared."""
    return "measured on the training fold" if ct.missing else [ct.lower, ct.upper]


def _placed(pair: Pair) -> str:
    rules = {
        "top_of_scan": "from the top of the scan down"
        + (", in x and y from the image's corner" if pair.stage.lateral == "corner" else ""),
        "below_head": f"hung {pair.stage.top:.0%} up the head's box".replace("%", " %"),
        "lesions": _CENTRES[pair.config["recipe"]["roi"]["train"]],
        "scan": "on the middle of the scan",
    }
    jitter = jitter_mm(pair.config, pair.stage)
    return rules[pair.stage.placement] + (f", shifted by up to {jitter:g} mm" if jitter else "")


def _augmentation(pair: Pair) -> list[Properties]:
    """The training transforms as they are configured: of scans, the random crop where the patch is not the
    ROI, and of patches."""
    shown = pair.spec.pad_to or pair.stage.shape
    cut = [] if tuple(pair.config["training"]["patch"]) == shown else [{"transform": "random crop"}]
    scans = [_transform(one) for one in pair.config["scan_augment"].values()]
    return [*scans, *cut, *(_transform(one) for one in pair.config["augment"]["transforms"])]


def _transform(configured: Properties) -> Properties:
    """A transform's name and settings."""
    settings = {key: value for key, value in configured.items() if key != "_target_"}
    return {"transform": configured["_target_"].rpartition(".")[2], **settings}
