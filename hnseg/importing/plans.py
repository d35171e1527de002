"""What an nnU-Net v2 results folder says of its networks, in hnseg's terms.

`plans.json` is read as nnU-Net's PlansManager and ConfigurationManager read it, `dataset.json` as its
LabelManager does. What hnseg would do otherwise than nnU-Net is refused, by name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnseg.data.normalise import Normalise
from hnseg.errors import HnsegError
from hnseg.importing.architecture import architecture
from hnseg.importing.names import misplaced, swapped
from hnseg.importing.values import are_lengths, are_numbers, are_sides
from hnseg.inference.axes import Axes
from hnseg.stage import Stage

# Axes of (z, y, x) that the array of each reader has the other way round than an image in LPS.
_READERS = {
    "SimpleITKIO": (),
    "NibabelIO": (),
    "SimpleITKIOWithReorient": (1, 2),  # both bring images to RAS
    "NibabelIOWithReorient": (1, 2),
}
_SCHEMES = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "RescaleTo01Normalization": "rescale",
    "NoNormalization": "none",
}
_CT_CONSTANTS = {"lower": "percentile_00_5", "upper": "percentile_99_5", "mean": "mean", "std": "std"}


@dataclass(frozen=True)
class Plans:
    """A plan's file and its data set's.

    Args:
        folder: Holds plans.json and dataset.json.
        plans: The content of plans.json.
        dataset: The content of dataset.json.
    """

    folder: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Plans:
        """Reads both files of a results folder.

        Raises:
            HnsegError: One is missing or no JSON.
        """
        return cls(folder, read_json(folder / "plans.json"), read_json(folder / "dataset.json"))

    def configuration(self, name: str) -> Configuration:
        """One configuration, with what it inherits.

        Raises:
            HnsegError: There is none of that name, or it lacks a key.
        """
        known = self.plans.get("configurations", {})
        chain: list[dict[str, Any]] = []
        parent: str | None = name
        while parent is not None:
            if parent not in known or len(chain) > len(known):
                raise self.refused(f"configurations has no {parent}", "copy the plans of this training")
            chain.append(known[parent])
            parent = known[parent].get("inherits_from")
        merged = {key: value for one in reversed(chain) for key, value in one.items()}
        return Configuration(self, name, merged)

    def axes(self) -> Axes:
        """The network's axes: turned as its reader and the plan turn them."""
        reader = self.plans["image_reader_writer"]
        if reader not in _READERS:
            raise self.refused(f"image_reader_writer={reader}", f"hnseg knows {', '.join(_READERS)}")
        z, y, x = self.plans["transpose_forward"]
        return Axes((z, y, x), tuple(n for n, axis in enumerate((z, y, x)) if axis in _READERS[reader]))

    def check_labels(self, stage: Stage) -> None:
        """Refuses classes that are not the stage's.

        Raises:
            HnsegError: Regions, an ignore label, another number of classes, or one in another's place.
        """
        path, labels = self.folder / "dataset.json", dict(self.dataset["labels"])
        if any(isinstance(value, list) for value in labels.values()):
            raise HnsegError(f"{path}: labels are regions; hnseg's networks tell classes apart by softmax")
        if "ignore" in labels:
            raise HnsegError(f"{path}: labels has an ignore label; hnseg knows none")
        names = sorted((name for name in labels if name != "background"), key=lambda name: int(labels[name]))
        values = sorted(int(value) for value in labels.values())
        if values != list(range(len(stage.classes) + 1)) or misplaced(names, stage.classes):
            told = ", ".join(f"{name}={value}" for name, value in labels.items())
            wanted = ", ".join(f"{name}={n}" for n, name in enumerate(stage.classes, start=1))
            raise HnsegError(
                f"{path}: labels {told}; stage={stage.name} has {wanted}; choose the stage it was made for"
            )

    def check_channels(self, shown: Sequence[str]) -> None:
        """Refuses channels that the recipe does not make.

        Args:
            shown: What each channel of the recipe's input shows.

        Raises:
            HnsegError: Another number of channels, or PET where CT belongs, or the other way round.
        """
        path = self.folder / "dataset.json"
        channels = self.dataset.get("channel_names", self.dataset.get("modality", {}))
        names = [str(channels[key]) for key in sorted(channels, key=int)]
        if len(names) != len(shown):
            remedy = {(4, 2): "give cte=true", (2, 4): "give cte=false"}.get((len(names), len(shown)))
            raise HnsegError(
                f"{path}: {len(names)} channels ({', '.join(names)}), but stage and recipe make "
                f"{len(shown)}; {remedy or 'choose another stage'}"
            )
        if swapped(names, shown):
            raise HnsegError(
                f"{path}: channels {', '.join(names)} where hnseg shows {', '.join(shown)}; train in this "
                "order, or correct the names if they are wrong"
            )

    def refused(self, what: str, remedy: str) -> HnsegError:
        """What to raise about the plan."""
        return HnsegError(f"{self.folder / 'plans.json'}: {what}; {remedy}")


@dataclass(frozen=True)
class Configuration:
    """One configuration of a plan, for instance 3d_fullres.

    Args:
        plans: The plan.
        name: The configuration's.
        entries: Its keys, inherited ones included; axes are the network's.
    """

    plans: Plans
    name: str
    entries: dict[str, Any]

    def check(self, stage: Stage) -> None:
        """Refuses what hnseg would do otherwise than nnU-Net.

        Raises:
            HnsegError: A 2D network, one of a cascade, another preprocessor or another spacing.
        """
        if not are_sides(self.entries["patch_size"]):
            raise self._refused("patch_size", "hnseg's networks are 3D, so give three whole numbers above 0")
        if self.entries.get("previous_stage"):
            raise self._refused("previous_stage", "hnseg gives a network images alone")
        if self.entries.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
            raise self._refused("preprocessor_name", "hnseg knows DefaultPreprocessor")
        wanted = [stage.spacing[::-1][axis] for axis in self.plans.axes().order]
        told = self.entries["spacing"]
        if not are_lengths(told) or any(abs(a - b) > 1e-3 * b for a, b in zip(told, wanted, strict=True)):
            raise self._refused(
                "spacing", f"stage={stage.name} has {wanted} mm along these axes; set stage.spacing=[x,y,z]"
            )

    @property
    def patch(self) -> tuple[int, int, int]:
        """The window, (z, y, x)."""
        a, b, c = self.entries["patch_size"]
        return self.plans.axes().shape_from_network((a, b, c))

    @property
    def architecture(self) -> tuple[str, dict[str, Any]]:
        """hnseg's name of the network, and its settings."""
        return architecture(self.entries, f"{self.plans.folder / 'plans.json'}: {self.name}")

    @property
    def normalise(self) -> tuple[Normalise, ...]:
        """What nnU-Net does to each channel."""
        schemes, masked = self.entries["normalization_schemes"], self.entries["use_mask_for_norm"]
        if any(masked):
            raise self._refused(
                "use_mask_for_norm", "hnseg normalises over the whole ROI, without a mask of what is not zero"
            )
        properties = self.plans.plans.get("foreground_intensity_properties_per_channel")
        properties = properties or self.plans.plans.get("foreground_intensity_properties_by_modality", {})
        return tuple(self._scheme(name, properties, n) for n, name in enumerate(schemes))

    def _scheme(self, name: str, properties: dict[str, Any], channel: int) -> Normalise:
        if name not in _SCHEMES:
            raise self._refused("normalization_schemes", f"hnseg knows {', '.join(_SCHEMES)}")
        if name != "CTNormalization":
            return Normalise(_SCHEMES[name])  # type: ignore[arg-type]
        constants = [properties[str(channel)][theirs] for theirs in _CT_CONSTANTS.values()]
        if not are_numbers(constants, len(_CT_CONSTANTS)):
            raise self.plans.refused(
                f"{', '.join(_CT_CONSTANTS.values())} of channel {channel} are {constants}",
                "all must be numbers; copy the plans of this training",
            )
        return Normalise("ct", **dict(zip(_CT_CONSTANTS, map(float, constants), strict=True)))

    def _refused(self, key: str, remedy: str) -> HnsegError:
        return self.plans.refused(f"{self.name}.{key}={self.entries[key]}", remedy)


def mirror_axes(axes: Axes, allowed: Sequence[int] | None) -> list[int]:
    """The axes of (z, y, x) along which a checkpoint allows mirroring; it counts in the network's."""
    return sorted(axes.order[axis] for axis in allowed or ())


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        HnsegError: It is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HnsegError(f"{path}: {error.strerror}; name an nnU-Net results folder that holds it") from error
    except ValueError as error:
        raise HnsegError(f"{path}: no JSON ({error}); copy it again") from error
