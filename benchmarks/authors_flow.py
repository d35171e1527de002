"""One case the authors' way: nnU-Net's command line three times, MONAI once, every step by way of the disk.

    python benchmarks/authors_flow.py CT PET RESULTS AUTO3DSEG OUT DEVICE

Head crop → `nnUNetv2_predict` → coarse ROI → `nnUNetv2_predict` → fine ROI → `nnUNetv2_predict` with five
folds, and Auto3DSeg's SegResNet inference with five more, composed of MONAI's own classes as the template
composes them → the mean → the CT's grid. ROIs lie where hnseg puts them, so that both do the same work.
Leaves OUT/mask.nii.gz, and the seconds of each step in OUT/seconds.json.

    python benchmarks/authors_flow.py segresnet DEVICE ROI AUTO3DSEG OUT

is the second framework's process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import SimpleITK as sitk

from hnseg.imaging.grid import Grid, coarse_grid, top_of_scan_grid

DATASETS = {"localiser": "001", "coarse": "002", "fine": "003"}
HEAD = ((256, 256, 128), (2.0, 2.0, 3.0))
COARSE = ((144, 144, 144), (2.0, 2.0, 2.0))
FINE = ((144, 144, 144), (1.0, 1.0, 1.0))


class Flow:
    """One case from its files to its mask.

    Args:
        results: nnU-Net's results folder.
        work_dir: Auto3DSeg's.
        out: Where every step leaves its files.
        device: cpu or cuda.
    """

    def __init__(self, results: Path, work_dir: Path, out: Path, device: str) -> None:
        self.results, self.work_dir, self.out, self.device = results, work_dir, out, device
        self.seconds: dict[str, float] = defaultdict(float)

    def run(self, ct_file: Path, pet_file: Path) -> None:
        """Leaves OUT/mask.nii.gz."""
        with self.timed("read"):
            ct, pet = sitk.ReadImage(str(ct_file), sitk.sitkFloat32), sitk.ReadImage(str(pet_file))
            pet = sitk.Cast(pet, sitk.sitkFloat32)
        with self.timed("resample"):
            crop = top_of_scan_grid(ct, *HEAD)
            ct_crop, pet_crop = sample(ct, crop, -1000.0), sample(pet, crop, 0.0)
            self.show("localiser", [window(ct_crop)])
        self.predict("localiser")
        with self.timed("resample"):
            grid = coarse_grid(largest(self.labels("localiser")), *COARSE)
            self.show("coarse", scaled(ct_crop, pet_crop, grid))
        self.predict("coarse")
        with self.timed("resample"):
            grid = Grid.centred(centroid(self.labels("coarse")), *FINE)
            low, high = scaled(ct_crop, pet_crop, grid)
            self.show("fine", [*enhanced(low), high])
            for name, image in (("ct", low), ("pet", high)):
                sitk.WriteImage(image, str(self.out / f"{name}.nii.gz"))
        self.predict("fine", "--save_probabilities")
        with self.timed("fine"):
            command = [sys.executable, __file__, "segresnet", self.device, self.out, self.work_dir, self.out]
            subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        with self.timed("back"):
            mask = grid_mask(self.out, grid)
            mask = sitk.Resample(mask, ct, sitk.Transform(), sitk.sitkNearestNeighbor)
        with self.timed("write"):
            sitk.WriteImage(mask, str(self.out / "mask.nii.gz"), useCompression=True)

    def show(self, stage: str, channels: list[sitk.Image]) -> None:
        """Writes a stage's channels as nnU-Net reads them."""
        folder = self.out / stage
        folder.mkdir()
        for n, channel in enumerate(channels):
            sitk.WriteImage(channel, str(folder / f"case_{n:04}.nii.gz"))

    def predict(self, stage: str, *options: str) -> None:
        """Runs nnU-Net's command line with all folds of a stage."""
        folds = ["0", "1", "2", "3", "4"] if stage == "fine" else ["all"]
        names = ("nnUNet_results", "nnUNet_raw", "nnUNet_preprocessed")
        command = [
            *(str(Path(sys.executable).with_name("nnUNetv2_predict")), "-d", DATASETS[stage]),
            *("-i", str(self.out / stage), "-o", str(self.out / f"{stage}_out"), "-c", "3d_fullres"),
            *("-f", *folds, "--disable_tta", "--disable_progress_bar", "-device", self.device, *options),
        ]
        with self.timed(stage):
            environment = os.environ | dict.fromkeys(names, str(self.results))
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)

    def labels(self, stage: str) -> sitk.Image:
        """What nnU-Net wrote for a stage."""
        return sitk.ReadImage(str(self.out / f"{stage}_out" / "case.nii.gz"))

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds to a step's seconds."""
        start = perf_counter()
        yield
        self.seconds[step] += perf_counter() - start


def sample(image: sitk.Image, grid: Grid, fill: float) -> sitk.Image:
    """Cubic B-spline, as the authors sample."""
    like = grid.image(np.zeros(grid.shape, np.uint8))
    return sitk.Resample(image, like, sitk.Transform(), sitk.sitkBSpline, fill, sitk.sitkFloat32)


def window(ct: sitk.Image) -> sitk.Image:
    """-110 to 190 HU to [-1, 1]."""
    return sitk.IntensityWindowing(ct, -110.0, 190.0, -1.0, 1.0)


def scaled(ct: sitk.Image, pet: sitk.Image, grid: Grid) -> list[sitk.Image]:
    """CT and PET of an ROI, from the head crop."""
    return [window(sample(ct, grid, -1000.0)), sitk.RescaleIntensity(sample(pet, grid, 0.0), 0.0, 1.0)]


def enhanced(ct: sitk.Image) -> list[sitk.Image]:
    """CT, its square and its cube root, taken in [0, 1] and brought to [-1, 1]."""
    unit = (sitk.Clamp(ct, sitk.sitkFloat32, -1.0, 1.0) + 1) / 2
    return [power * 2 - 1 for power in (unit, unit * unit, unit ** (1 / 3))]


def largest(mask: sitk.Image) -> sitk.Image:
    """The largest connected component."""
    return sitk.RelabelComponent(sitk.ConnectedComponent(mask > 0), sortByObjectSize=True) == 1


def centroid(labels: sitk.Image) -> tuple[float, ...]:
    """mm, of all labels."""
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(labels > 0)
    return tuple(statistics.GetCentroid(1))


def grid_mask(out: Path, grid: Grid) -> sitk.Image:
    """The mean of both ensembles' probabilities, decided."""
    unet = np.load(out / "fine_out" / "case.npz")["probabilities"]
    segresnet = np.load(out / "segresnet.npy")
    return grid.image(((unet + segresnet) / 2).argmax(0).astype(np.uint8))


def segresnet(device: str, roi: Path, work_dir: Path, out: Path) -> None:
    """The mean softmax of Auto3DSeg's five networks, (K, z, y, x), in OUT/segresnet.npy."""
    import torch
    from monai.inferers import SlidingWindowInfererAdapt
    from monai.networks.nets import SegResNetDS
    from monai.utils import convert_to_dst_type

    total: Any = 0
    folders = sorted(work_dir.glob("segresnet_*"))
    case, invert = read_as_template(roi)
    image = case["image"].as_subclass(torch.Tensor)[None].to(device)
    for folder in folders:
        stored = torch.load(folder / "model" / "model.pt", weights_only=True, map_location="cpu")
        config = stored["config"]
        settings = {key: value for key, value in config["network"].items() if key != "_target_"}
        network = SegResNetDS(spatial_dims=3, **settings)
        network.load_state_dict(stored["state_dict"])
        network = network.to(device).eval()
        if device == "cuda":
            network = network.to(memory_format=torch.channels_last_3d)
        inferer = SlidingWindowInfererAdapt(
            config["roi_size"], sw_batch_size=1, overlap=0.625, mode="gaussian", cache_roi_weight_map=True
        )
        # Auto3DSeg has mixed precision on a GPU alone.
        with torch.no_grad(), torch.autocast(device, enabled=device == "cuda"):
            logits = inferer(inputs=image, network=network)
        case["pred"] = convert_to_dst_type(logits.float().softmax(1)[0].cpu(), case["image"])[0]
        total = total + np.asarray(invert(dict(case))["pred"])
    np.save(out / "segresnet.npy", (total / len(folders)).transpose(0, 3, 2, 1))


def read_as_template(roi: Path) -> tuple[dict[str, Any], Any]:
    """The ROI read, oriented, matched and scaled as the template does; and how a prediction goes back."""
    import torch
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

    transform = Compose(
        [
            LoadImaged(["image", "pet"], ensure_channel_first=True, dtype=None, image_only=True),
            EnsureTyped(["image", "pet"], data_type="tensor", dtype=torch.float),
            Orientationd("image", axcodes="RAS"),
            ResampleToMatchd("pet", key_dst="image", dtype=np.float32),
            ScaleIntensityRanged("image", a_min=-1.0, a_max=1.0, b_min=-1, b_max=1, clip=False),
            Lambdad("image", func=torch.sigmoid),
            Lambdad("pet", func=lambda x: torch.sigmoid((x - x.min()) / x.std())),
            ConcatItemsd(["image", "pet"], name="image"),
            DeleteItemsd("pet"),
        ]
    )
    invert = Invertd("pred", orig_keys="image", transform=transform, nearest_interp=False)
    case = transform({"image": str(roi / "ct.nii.gz"), "pet": str(roi / "pet.nii.gz")})
    return case, invert


def main() -> None:
    """One case, or the second framework's part of it."""
    if sys.argv[1] == "segresnet":
        device, *folders = sys.argv[2:]
        segresnet(device, *map(Path, folders))
        return
    *paths, device = sys.argv[1:]
    ct, pet, results, work_dir, out = map(Path, paths)
    flow = Flow(results, work_dir, out, device)
    flow.run(ct, pet)
    (out / "seconds.json").write_text(json.dumps(flow.seconds))


if __name__ == "__main__":
    main()
