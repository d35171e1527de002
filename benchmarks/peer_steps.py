"""Training steps of nnU-Net and of Auto3DSeg, on made-up patients, printed as JSON on standard output.

    python benchmarks/peer_steps.py plainconv|resenc|segresnet PATCH BATCH STEPS cpu|cuda

nnU-Net's are its own: nnUNetTrainer with its loaders, augmentation, loss, optimiser and step. Auto3DSeg's
template is not on PyPI: its network, loss, optimiser, augmentation and half precision (on a GPU) are put
together of MONAI's classes, as facts about it are published. Five steps to warm up are not counted.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from multiprocessing import active_children
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from random_members import STAGES, make_plans

CASES, SHAPE, WARM_UP = 6, (144, 144, 144), 5


def main() -> None:
    """Measures one network."""
    network, patch, batch, steps, device = sys.argv[1:]
    make = auto3dseg if network == "segresnet" else nnunet
    with tempfile.TemporaryDirectory() as folder:
        batches, step = make(network, int(patch), int(batch), torch.device(device), Path(folder))
        seconds = measure(batches, step, int(steps), device)
        measured = {
            "step": seconds["step"],
            "wait": seconds["wait"],
            "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
        }
        print(json.dumps(measured), flush=True)
        for worker in active_children():  # nnU-Net's would go on for ever
            worker.terminate()
        os._exit(0)


def measure(
    batches: Iterator[Any], step: Callable[[Any], object], steps: int, device: str
) -> dict[str, list[float]]:
    """Seconds of each step, and those spent waiting for its batch."""
    seconds: dict[str, list[float]] = {"step": [], "wait": []}
    for number in range(WARM_UP + steps):
        start = perf_counter()
        batch = next(batches)
        there = perf_counter()
        step(batch)  # reads its loss, so that a GPU is through
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= WARM_UP:
            seconds["step"].append(perf_counter() - start)
            seconds["wait"].append(there - start)
    return seconds


def patients() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images (2, z, y, x) and labels (z, y, x) with two balls."""
    z, y, x = np.indices(SHAPE)
    for seed in range(CASES):
        rng = np.random.default_rng(seed)
        label = np.zeros(SHAPE, np.int16)
        for value in (1, 2):
            middle = rng.integers(40, 104, 3)
            distance = (z - middle[0]) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2
            label[distance < 12**2] = value
        yield rng.normal(size=(2, *SHAPE)).astype(np.float32), label


def nnunet(network: str, patch: int, batch: int, device: torch.device, folder: Path) -> tuple[Any, Any]:
    """nnU-Net's loader and step."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ.setdefault("nnUNet_compile", "f" if device.type == "cpu" else "t")
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    stage = deepcopy(STAGES["coarse"]) | {"patch": [patch] * 3}
    plans, dataset = make_plans(stage, residual=network == "resenc")
    plans["configurations"]["3d_fullres"]["batch_size"] = batch
    dataset["numTraining"] = CASES
    preprocessed = folder / "preprocessed" / stage["dataset"] / "nnUNetPlans_3d_fullres"
    preprocessed.mkdir(parents=True)
    for number, (image, label) in enumerate(patients()):
        places = {value: np.argwhere(label[None] == value) for value in (1, 2)}
        target = str(preprocessed / f"case_{number}")
        nnUNetDatasetBlosc2.save_case(image, label[None], {"class_locations": places}, target)
    (preprocessed.parent / "dataset.json").write_text(json.dumps(dataset))
    settings = plans | {"continue_training": False}
    trainer = nnUNetTrainer(settings, "3d_fullres", "all", dataset, device)
    trainer.print_to_log_file = lambda *_, **__: None
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    trainer.network.train()
    return iter(lambda: next(loader), None), trainer.train_step


def auto3dseg(network: str, patch: int, batch: int, device: torch.device, folder: Path) -> tuple[Any, Any]:
    """A loader and step of MONAI's classes, as Auto3DSeg's SegResNet has them."""
    from monai.losses import DeepSupervisionLoss, DiceCELoss
    from monai.networks.nets import SegResNetDS

    net = SegResNetDS(
        spatial_dims=3, init_filters=32, blocks_down=(1, 2, 2, 4, 4), norm="INSTANCE", in_channels=2,
        out_channels=3, dsdepth=4,
    ).to(device).train()  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-4, weight_decay=1e-5)
    loss = DeepSupervisionLoss(
        DiceCELoss(
            include_background=True,
            squared_pred=True,
            smooth_nr=0,
            smooth_dr=1e-5,
            softmax=True,
            to_onehot_y=True,
        )
    )
    scaler = torch.amp.GradScaler("cuda", enabled=device.type == "cuda")

    def step(data: dict[str, Any]) -> float:
        image, label = (data[key].to(device, non_blocking=True).as_tensor() for key in ("image", "label"))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", enabled=device.type == "cuda"):
            outputs = net(image)
        value = loss([output.float() for output in outputs], label)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        return value.item()

    return endless(monai_loader(patch, batch)), step


def monai_loader(patch: int, batch: int) -> Any:
    """MONAI's loader, patients in memory: crops by class, and the template's mix in its default mode."""
    import monai.transforms as mt
    from monai.data import CacheDataset, DataLoader

    both = ["image", "label"]
    transforms = mt.Compose(
        [
            mt.EnsureTyped(both),
            mt.RandCropByLabelClassesd(
                both, label_key="label", num_classes=3, spatial_size=[patch] * 3, ratios=[1, 1, 1], warn=False
            ),
            mt.RandAffined(
                both, prob=0.2, rotate_range=[0.26] * 3, scale_range=[0.2] * 3, mode=["bilinear", "nearest"],
                spatial_size=[patch] * 3, cache_grid=True, padding_mode="border",
            ),
            mt.RandGaussianSmoothd("image", prob=0.2, sigma_x=[0.5, 1], sigma_y=[0.5, 1], sigma_z=[0.5, 1]),
            mt.RandScaleIntensityd("image", prob=0.5, factors=0.3),
            mt.RandShiftIntensityd("image", prob=0.5, offsets=0.1),
            mt.RandGaussianNoised("image", prob=0.2, mean=0, std=0.1),
            *(mt.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)),
        ]
    )  # fmt: skip
    data = [{"image": image, "label": label[None]} for image, label in patients()] * 50
    workers = max(1, min(8, (os.cpu_count() or 1) // 2))
    dataset = CacheDataset(data, transforms, progress=False, num_workers=1)
    return DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=workers, persistent_workers=True)


def endless(loader: Any) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


if __name__ == "__main__":
    main()
