"""A synthetic set on its way out: all that the formats write, and the folder that gets it whole or not at all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.ground.errors import ArtifactError, UserError
from src.maths.pixels import Normalisation, Space, Whitening
from src.settings.networks import Network
from src.settings.protocols import Protocol
from src.store import files, tensors, values


@dataclass(frozen=True)
class Exported:
    """A run's synthetic set, in pixels, with what its students read, are and do."""

    name: str  # of the run
    pixels: Tensor  # (S, C, H, W) float32, 0 black and 1 white, not bound to either
    labels: Tensor  # (S,) classes in int64, or (S, K) probabilities in float32
    syn_lr: float  # learning rate of the students
    classes: tuple[str, ...]  # K names
    dataset: str  # its name, a key of `prepare`
    mean: Tensor  # (C,) of the training split's pixels
    std: Tensor  # (C,)
    network: Network  # of the students
    evaluation: Protocol
    whitening: Whitening | None = None  # what networks read instead of normalised pixels
    accuracy: Mapping[str, float] | None = None  # as `evaluate` measured it, in fractions
    card: Mapping[str, Any] = field(default_factory=dict)  # further facts for set.json, such as the settings that made it
    record: Mapping[str, Any] = field(default_factory=lambda: {"kind": values.SYNTHETIC})  # of the run's artifact
    half: bool = False  # pixels in float16, where the format has a choice

    def __post_init__(self) -> None:
        if self.pixels.dim() != 4 or len(self.labels) != len(self.pixels):
            raise ValueError(f"pixels {tuple(self.pixels.shape)} and labels {tuple(self.labels.shape)} are no set of images")

    @property
    def space(self) -> Space:
        """What networks read of pixels."""
        return Normalisation(self.mean, self.std) if self.whitening is None else self.whitening

    @property
    def inputs(self) -> Tensor:
        """(S, C, H, W), the images as networks read them."""
        return self.space.normalise(self.pixels)

    @property
    def soft(self) -> bool:
        """Whether labels are probabilities."""
        return self.labels.is_floating_point()

    @property
    def indices(self) -> Tensor:
        """(S,), the likeliest class of each image."""
        return self.labels.argmax(dim=1) if self.soft else self.labels

    @property
    def source(self) -> str:
        """The known data set that the real images are, where the settings say so; else the data set's name."""
        prepared = self.card.get("settings", {}).get("prepare", {}).get(self.dataset, {})
        return str(prepared.get("source", self.dataset))

    def described(self, tensors: Mapping[str, str]) -> dict[str, Any]:
        """The content of set.json: further facts, what the folder's script takes, and what each tensor of the format is."""
        mean, std = ([float(number) for number in values] for values in (self.mean, self.std))
        return {
            **self.card,
            "run": self.name,
            "dataset": {"name": self.dataset, "classes": list(self.classes), "mean": mean, "std": std},
            "tensors": dict(tensors),
            "syn_lr": self.syn_lr,
            "whitening": "none" if self.whitening is None else "zca",
            "network": self.network.model_dump(),
            "evaluation": self.evaluation.model_dump(mode="json"),
            "accuracy": None if self.accuracy is None else dict(self.accuracy),
        }


def record_of(path: Path) -> dict[str, Any]:
    """What a tensor artifact, which was checked before, says made it."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        found = dict(json.loads(file.metadata()[tensors.METADATA_KEY]))
    found.pop(files.CHECKSUM, None)
    return found


@contextlib.contextmanager
def target(folder: Path) -> Iterator[Path]:
    """A place whose files go to `folder`, which is new or empty, once the block is through.

    Raises UserError where the folder holds something, ArtifactError where the file system refuses.
    """
    if folder.exists() and (not folder.is_dir() or not files.is_empty(folder)):
        raise UserError(f"--to {folder}: is there already and is not an empty folder: name another one, or delete it")
    try:
        with files.filled(folder) as place:
            yield place
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArtifactError(f"{folder} can't be written ({reason}): free space or permit writing there") from error


def check_channels(exported: Exported, form: str) -> None:
    """Raises UserError unless the images are grey or in colour, which is all that PNG holds."""
    channels = exported.pixels.shape[1]
    if channels not in (1, 3):
        raise UserError(
            f"{exported.name} has images of {channels} channels, and --format {form} holds 1 (grey) or 3 (colour): "
            "take --format safetensors or pt"
        )


def bytes_of(exported: Exported) -> Tensor:
    """(S, C, H, W) uint8: pixels cut off at 0 and 1, and rounded to steps of 1 / 255."""
    return (exported.pixels.clamp(0, 1) * 255).round().to(torch.uint8)
