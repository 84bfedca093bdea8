"""Anybody's synthetic set -> ours: pixels, labels and learning rate, checked for what they are said to be.

Sources: MTT's distill.py (images_best.pt and labels_best.pt, in the networks' space), DATM's DATM.py (logits as labels,
lr_best.pt), DC's main.py (res_*.pt).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from src.exchange import containers, folders, images, labels
from src.exchange.containers import Contents
from src.exchange.images import SpaceName
from src.exchange.labels import LabelsName
from src.ground.errors import ArtifactError, UserError
from src.maths.networks import ImageShape
from src.maths.pixels import Space
from src.store.values import SyntheticSet


@dataclass(frozen=True)
class Options:
    """What a file does not say of itself."""

    space: SpaceName
    """What the images are: pixels in [0, 1] or integers 0 to 255, normalised by mean and std, or whitened by ZCA."""
    of: Space | None = None
    """The data set's own space, which leads back to pixels: Normalisation for normalised, Whitening for whitened."""
    labels: LabelsName | None = None
    """What the labels are; None goes by the numbers, where they leave no doubt."""
    labels_file: Path | None = None
    """Where the labels lie, if not with the images."""
    syn_lr: float | None = None
    """Learning rate of students; None takes the file's."""
    class_names: Sequence[str] = ()
    """Names of the data set's classes, by which folders of images may be named."""
    sure: bool = False
    """Take the user's word where the numbers look like something else."""


@dataclass(frozen=True)
class Imported:
    """A set, and what was decided on the way to it."""

    value: SyntheticSet
    notes: tuple[str, ...]


def read(path: Path, shape: ImageShape, options: Options) -> Imported:
    """The synthetic set of a file or folder, for images of this shape.

    Raises ArtifactError where a file is missing, damaged, of another kind, or holds no set for such images; UserError where
    something has to be said first.
    """
    found = _contents(path, shape, options)
    if found.labels is None:
        remedy = "name the file that holds them, or save both under 'images' and 'labels'"
        raise UserError(f"{path} holds images without labels: {remedy}")
    arranged, how = images.arranged(found.images, shape, found.title)
    space: SpaceName = "pixels" if found.in_pixels else options.space
    pixels, scaled = images.to_pixels(arranged, space, options.of, options.sure or found.in_pixels, found.title)
    known = labels.understood(found.labels, len(pixels), shape.classes, options.labels, options.sure, found.title)
    value = SyntheticSet(pixels.contiguous(), known, _syn_lr(found, options.syn_lr))
    return Imported(value, (*found.notes, *how, *scaled, *labels.imbalance(value.classes, shape.classes)))


def _contents(path: Path, shape: ImageShape, options: Options) -> Contents:
    if not path.is_dir():
        return containers.read(path, options.labels_file)
    if options.labels_file is not None:
        raise UserError(f"{path} is a folder, whose images have the labels of their folders: leave {options.labels_file} out")
    if options.space != "pixels":
        raise UserError(
            f"{path} is a folder of images, which hold pixels, not {options.space} numbers: say that they are pixels"
        )
    pixels, classes, notes = folders.read(path, shape, options.class_names)
    return Contents(str(path), pixels, classes, None, notes)


def _syn_lr(found: Contents, given: float | None) -> Tensor:
    """() in float32; what the user gives goes before what the file says."""
    if given is None and found.syn_lr is None:
        raise UserError(f"{found.title} says no learning rate for students: give syn_lr, as its makers learned or chose it")
    if given is None and found.syn_lr is not None and found.syn_lr.numel() != 1:
        shape = tuple(found.syn_lr.shape)
        raise ArtifactError(f"{found.title} has learning rates of shape {shape}, but students take a single one: give syn_lr")
    value = float(given if given is not None else found.syn_lr)  # type: ignore[arg-type]
    if not (math.isfinite(value) and value > 0):
        raise ArtifactError(f"{found.title} has the learning rate {value:g}, but students need one above 0: give syn_lr")
    return torch.tensor(value, dtype=torch.float32)
