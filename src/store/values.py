"""The artifacts that stages exchange, as values, and what each is called in its record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from src.ground.errors import UserError
from src.maths.networks import ImageShape, Modality, Shape, TupleShape
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

    def tensors(self) -> dict[str, Tensor]:
        return {"images": self.images, "labels": self.labels}


@dataclass(frozen=True)
class Items:
    """What a split has of one modality: items (n, ...), each once, and the group (n,) of each, which is the same for items of
    other modalities that belong to it. Texts have their words beside their numbers, sounds their waves (n, T).
    """

    values: Tensor  # float32, or uint8 pixels
    groups: Tensor  # int64
    texts: tuple[str, ...] = ()
    waves: Tensor | None = None  # int16

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Of the modality so called."""
        found = {f"{VALUES}{name}": self.values, f"{GROUPS}{name}": self.groups}
        found |= {f"{TEXTS}{name}": _bytes(self.texts)} if self.texts else {}
        return found | ({} if self.waves is None else {f"{WAVES}{name}": self.waves})

    def at(self, places: Tensor) -> Items:
        """Some of them, (n,)."""
        texts = tuple(self.texts[place] for place in places.tolist()) if self.texts else ()
        return Items(self.values[places], self.groups[places], texts, None if self.waves is None else self.waves[places])


@dataclass(frozen=True)
class TupleSplit:
    """Real tuples of one split: rows (N, M) of places among the items of each modality."""

    items: Mapping[str, Items]
    rows: Tensor  # int64

    def tensors(self) -> dict[str, Tensor]:
        own = (items.tensors(name) for name, items in self.items.items())
        return {"rows": self.rows} | {key: tensor for tensors in own for key, tensor in tensors.items()}

    @staticmethod
    def of(found: Mapping[str, Tensor], names: Sequence[str]) -> TupleSplit:
        """Of tensors as `tensors` has them; raises KeyError where one is missing."""
        items = {
            name: Items(found[VALUES + name], found[GROUPS + name], _texts(found.get(TEXTS + name)), found.get(WAVES + name))
            for name in names
        }
        return TupleSplit(items, found["rows"])


VALUES, GROUPS, TEXTS, WAVES = "items.", "groups.", "texts.", "waves."  # before the names of modalities


def _bytes(texts: Sequence[str]) -> Tensor:
    """Lines of UTF-8."""
    return torch.frombuffer(bytearray("\n".join(texts).encode()), dtype=torch.uint8)


def _texts(lines: Tensor | None) -> tuple[str, ...]:
    return () if lines is None else tuple(lines.numpy().tobytes().decode().split("\n"))


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
    def shape(self) -> Shape:
        """What networks read."""
        return self.image_shape

    @property
    def image_shape(self) -> ImageShape:
        return ImageShape(self.channels, self.size, len(self.classes))


@dataclass(frozen=True)
class TupleStatistics(Statistics):
    """What `prepare` found out about a data set of tuples: it has no classes, and counts are of tuples."""

    modalities: tuple[tuple[str, str, tuple[int, ...]], ...]  # name, kind, shape of an item

    @property
    def shape(self) -> TupleShape:
        return TupleShape(tuple(Modality(name, shape) for name, _, shape in self.modalities))

    @property
    def image_shape(self) -> ImageShape:
        names = ", ".join(self.kinds)
        raise UserError(
            f"this command works on images in classes, and the data set holds tuples of {names}: choose another one"
        )

    @property
    def kinds(self) -> Mapping[str, str]:
        """Image, text, audio or vector, by name."""
        return {name: kind for name, kind, _ in self.modalities}

    def natural(self, values: Tensor) -> Tensor:
        """Items (n, ...) as rows of real numbers (n, D_m)."""
        return values.flatten(1).float() / (self.pixel_max if values.dtype == torch.uint8 else 1)


@dataclass(frozen=True)
class SyntheticSet:
    """All that training a student takes. In pixels, so that it means the same to whoever normalises them."""

    pixels: Tensor  # (S, C, H, W), not bound to [0, 1]; of tuples (S, D)
    labels: (
        Tensor  # (S,) classes, or (S, K) probabilities in float32; of tuples their places, or the numbers of their similarity
    )
    syn_lr: Tensor  # (), of tuples (M,)

    @property
    def classes(self) -> Tensor:
        """(S,), the likeliest class of each image."""
        return self.labels.argmax(dim=1) if self.labels.is_floating_point() else self.labels

    @property
    def class_count(self) -> int:
        """K, of probabilities by their shape; of labels that are classes by the highest one."""
        return self.labels.shape[1] if self.labels.is_floating_point() else int(self.labels.max()) + 1

    def sha256(self) -> str:
        """The same for the same tensors, whatever file they are in."""
        return files.checksum({}, {"pixels": self.pixels, "labels": self.labels, "syn_lr": self.syn_lr})


@dataclass(frozen=True)
class Snapshots:
    """Synthetic images at several iterations; none of a set that is not distilled."""

    iterations: Tensor  # (n,)
    pixels: Tensor  # (n, S, C, H, W), or (0,)
    labels: Tensor | None = None  # (n, S, K), or of tuples (n, S, q), where they are learned


# what they are, so precisely that none is taken for another one of its folder
SPACE, STATISTICS, SYNTHETIC, SNAPSHOTS = "space", "statistics", "synthetic set", "snapshots"


def split_kind(split: str) -> str:
    return f"{split} split"


def trajectory_kind(index: int) -> str:
    return f"trajectory {index:03d}"  # as its file is named
