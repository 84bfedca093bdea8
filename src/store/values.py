"""The artifacts that stages exchange, as values, and what each is called in its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from src.maths.networks import ImageShape
from src.store import files


@dataclass(frozen=True)
class Record:
    """What made an artifact: the settings that matter, the seed among them, and the digests of the files it was made from.

    Its provenance is what else its bytes may depend on: code, packages, share of the machine. No artifact is refused for it.
    """

    kind: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return dict(json.loads(json.dumps(vars(self))))


@dataclass(frozen=True)
class Split:
    """Real images of one split: integers (N, C, H, W), pixel = integer / pixel_max; labels (N,)."""

    images: Tensor  # uint8
    labels: Tensor  # int64


@dataclass(frozen=True)
class Statistics:
    """What `prepare` found out about a data set."""

    classes: tuple[str, ...]
    channels: int
    size: int  # side in pixels
    pixel_max: int
    mean: tuple[float, ...]  # (C,) of the training split's pixels
    std: tuple[float, ...]
    source_mean: tuple[float, ...]  # (C,) of the source's training images, before a validation split is cut off: as published
    source_std: tuple[float, ...]
    counts: Mapping[str, Mapping[str, int]]  # split -> class name -> images
    source_sha256: str
    skipped: tuple[str, ...]  # images that can't be read

    @property
    def shape(self) -> ImageShape:
        return ImageShape(self.channels, self.size, len(self.classes))


@dataclass(frozen=True)
class SyntheticSet:
    """All that training a student takes. In pixels, so that it means the same to whoever normalises them."""

    pixels: Tensor  # (S, C, H, W), not bound to [0, 1]
    labels: Tensor  # (S,) classes, or (S, K) probabilities in float32
    syn_lr: Tensor  # ()

    @property
    def classes(self) -> Tensor:
        """(S,), the likeliest class of each image."""
        return self.labels.argmax(dim=1) if self.labels.is_floating_point() else self.labels

    def sha256(self) -> str:
        """The same for the same tensors, whatever file they are in."""
        return files.checksum({}, {"pixels": self.pixels, "labels": self.labels, "syn_lr": self.syn_lr})


@dataclass(frozen=True)
class Snapshots:
    """Synthetic images at several iterations; none of a set that is not distilled."""

    iterations: Tensor  # (n,)
    pixels: Tensor  # (n, S, C, H, W), or (0,)


# what they are, so precisely that none is taken for another one of its folder
SPACE, STATISTICS, SYNTHETIC, SNAPSHOTS = "space", "statistics", "synthetic set", "snapshots"


def split_kind(split: str) -> str:
    return f"{split} split"


def trajectory_kind(index: int) -> str:
    return f"trajectory {index:03d}"  # as its file is named
