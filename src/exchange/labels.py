"""Labels as somebody saved them -> classes (S,) in int64, or probabilities (S, K) in float32.

Soft labels come as probabilities, or as logits whose softmax is meant (DATM's code takes it in its loss). Numbers tell which
only where they can be but one of them; else the user has to say.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from src.ground.errors import ArtifactError

LabelsName = Literal["classes", "probabilities", "logits"]

TOLERANCE = 1e-3  # by which the sum of probabilities may miss 1
IPC_SAID = 3  # so many counts a note gives


def understood(labels: Tensor, count: int, classes: int, said: LabelsName | None, sure: bool, title: str) -> Tensor:
    """Labels of `count` images. Raises ArtifactError where they are of other images or classes, or not what was said."""
    found = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    found = found.double() if found.is_floating_point() else found
    shape = tuple(labels.shape)
    if found.ndim not in (1, 2) or len(found) != count:
        raise ArtifactError(
            f"{title} has labels of shape {shape} for {count:,} images: give (S,) classes or (S, K) soft labels"
        )
    if not found.isfinite().all():
        raise ArtifactError(f"{title} has labels that are not finite: use a set from before it diverged")
    if found.ndim == 1:
        return _hard(found, classes, said, title)
    if found.shape[1] != classes:
        remedy = f"use a data set with {found.shape[1]} classes"
        raise ArtifactError(f"{title} has soft labels of {found.shape[1]} classes, but the data set has {classes}: {remedy}")
    return _soft(found, said, sure, title)


def imbalance(labels: Tensor, classes: int) -> tuple[str, ...]:
    """What there is to say where not every class has as many images; `labels` are classes (S,)."""
    counts = torch.bincount(labels, minlength=classes)
    if int(counts.min()) == int(counts.max()):
        return ()
    fewest = [f"class {k} has {int(counts[k])}" for k in counts.argsort(stable=True)[:IPC_SAID].tolist()]
    return (f"images per class differ, from {int(counts.min())} to {int(counts.max())}: {', '.join(fewest)}",)


def _hard(labels: Tensor, classes: int, said: LabelsName | None, title: str) -> Tensor:
    if said in ("probabilities", "logits"):
        raise ArtifactError(f"{title} has one label for each image, but {said} are one number for each class: say classes")
    whole = not labels.is_floating_point() or bool((labels == labels.round()).all())
    if not whole:
        raise ArtifactError(f"{title} has labels that are no whole numbers, but classes are 0 to {classes - 1}: give those")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= classes:
        remedy = (
            "subtract 1, as classes count from 0" if (lowest, highest) == (1, classes) else "use the data set of these labels"
        )
        raise ArtifactError(f"{title} has labels from {lowest} to {highest}, but classes are 0 to {classes - 1}: {remedy}")
    return labels.to(torch.int64)


def _soft(labels: Tensor, said: LabelsName | None, sure: bool, title: str) -> Tensor:
    """Probabilities (S, K); one-hot rows of integers are classes."""
    if said == "classes" or not labels.is_floating_point():
        return _one_hot(labels, said, title)
    sums = labels.sum(dim=1)
    negative = bool((labels < 0).any())
    distribution = not negative and bool(((sums - 1).abs() <= TOLERANCE).all())
    if said == "probabilities" and not distribution:
        flaw = "some are negative" if negative else f"those of an image sum to {float(sums[(sums - 1).abs().argmax()]):.4g}"
        raise ArtifactError(f"{title} has labels that are no probabilities, as {flaw}: say logits, if their softmax is meant")
    if said == "logits" and distribution and not sure:
        raise ArtifactError(f"{title} looks like probabilities, as each row sums to 1: say so, or import it with `sure`")
    if said is None and not distribution and not negative:
        what = "soft labels that are not negative, but don't sum to 1, so that they may be logits or counts"
        raise ArtifactError(f"{title} has {what}: say logits, or divide each row by its sum and say probabilities")
    as_they_are = said == "probabilities" or (said is None and distribution)
    return (labels / sums[:, None] if as_they_are else labels.softmax(dim=1)).float()


def _one_hot(labels: Tensor, said: LabelsName | None, title: str) -> Tensor:
    hot = bool(((labels == 0) | (labels == 1)).all()) and bool((labels.sum(dim=1) == 1).all())
    if not hot:
        is_to_be = "is said to have classes" if said == "classes" else "has integers"
        raise ArtifactError(f"{title} {is_to_be}, but its rows of K numbers are not one-hot: say probabilities or logits")
    if said in ("probabilities", "logits"):
        raise ArtifactError(f"{title} has one-hot rows of integers, which are no {said}: say classes")
    return labels.argmax(dim=1)
