"""Auto3DSeg's SegResNet folders as its trainings leave them, and what MONAI predicts with one.

The reference is composed of MONAI's own classes, as the template's segmenter composes them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.data import list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import SegResNetDS
from monai.transforms import (
    Compose,
    ConcatItemsd,
    DeleteItemsd,
    EnsureTyped,
    Invertd,
    Lambdad,
    LoadImaged,
    Orientationd,
    ResampleToMatchd,
    ScaleIntensityRanged,
)
from monai.utils import convert_to_dst_type

NETWORK = {
    "_target_": "SegResNetDS",
    "init_filters": 8,
    "blocks_down": [1, 1],
    "norm": "INSTANCE",
    "in_channels": 2,
    "out_channels": 3,
    "dsdepth": 2,
}
# As the segmenter stores it with the weights: references resolved.
CONFIG = {
    "modality": "ct",
    "fold": 0,
    "input_channels": 2,
    "output_classes": 3,
    "roi_size": [12, 8, 10],
    "orientation_ras": True,
    "crop_foreground": True,
    "sigmoid": False,
    "resample": False,
    "resample_resolution": [3.0, 3.0, 3.0],
    "normalize_mode": "range",
    "intensity_bounds": [0.3, 0.6],
    "extra_modalities": {"image2": "pet"},
    "class_names": ["GTVp", "GTVn"],
    "network": NETWORK,
}


def network(config: dict[str, Any]) -> SegResNetDS:
    """Random weights, norms and biases included, with a softmax far from flat."""
    torch.manual_seed(config["fold"])
    settings = {key: value for key, value in config["network"].items() if key != "_target_"}
    made = SegResNetDS(spatial_dims=3, **settings).eval()
    head = made.up_layers[-1]["head"]
    with torch.no_grad():
        for weights in made.parameters():
            weights.add_(0.1 * torch.randn(weights.shape))
        factor = 40 / made(torch.randn(1, settings["in_channels"], 16, 16, 16)).std()
        head.weight.mul_(factor)
        head.bias.mul_(factor)
    return made


def write_algorithm(folder: Path, *, stored: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A folder as a training leaves it; `stored` changes the checkpoint, the rest its configuration."""
    config = CONFIG | changes
    (folder / "model").mkdir(parents=True)
    (folder / "configs").mkdir()
    (folder / "configs" / "hyper_parameters.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    content = {"state_dict": network(config).state_dict(), "config": config, "epoch": 7}
    content |= {"best_metric": np.float64(0.5)} | (stored or {})
    torch.save(
        {key: value for key, value in content.items() if value is not None}, folder / "model" / "model.pt"
    )
    return folder


def segment(files: dict[str, str], config: dict[str, Any]) -> np.ndarray:
    """Softmax (K, z, y, x) by MONAI's classes, in the order of the template's segmenter."""
    keys = list(files)
    lower, upper = config["intensity_bounds"]
    steps = [
        LoadImaged(keys, ensure_channel_first=True, dtype=None, image_only=True),
        EnsureTyped(keys, data_type="tensor", dtype=torch.float),
    ]
    if config["orientation_ras"]:
        steps.append(Orientationd("image", axcodes="RAS"))
    steps += [ResampleToMatchd(key, key_dst="image", dtype=np.float32) for key in keys[1:]]
    steps += [
        ScaleIntensityRanged("image", a_min=lower, a_max=upper, b_min=-1, b_max=1, clip=False),
        Lambdad("image", func=torch.sigmoid),
    ]
    steps += [Lambdad(key, func=lambda x: torch.sigmoid((x - x.min()) / x.std())) for key in keys[1:]]
    transform = Compose([*steps, ConcatItemsd(keys, name="image"), DeleteItemsd(keys[1:])])
    case = transform(files)
    inferer = SlidingWindowInferer(config["roi_size"], sw_batch_size=1, overlap=0.625, mode="gaussian")
    batch = list_data_collate([case])
    with torch.no_grad():
        logits = inferer(inputs=batch["image"].as_subclass(torch.Tensor), network=network(config))
    probabilities = torch.softmax(logits, 1, dtype=torch.double).float()[0]
    assert probabilities.amax(0).mean() > 0.9
    case["pred"] = convert_to_dst_type(probabilities, case["image"])[0]
    inverted = Invertd("pred", orig_keys="image", transform=transform, nearest_interp=False)(case)["pred"]
    return inverted.numpy().transpose(0, 3, 2, 1)
