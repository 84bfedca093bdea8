"""What a network is to learn: a batch, its loss, and what it is judged by. Classes of images are one task, tuples another.

Everything else, experts, inner loop, adjoint, matching, students, is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from src.maths import retrieval, scores
from src.maths.contrast import Contrastive
from src.maths.derivatives import Loss
from src.maths.networks import Shape, TupleShape
from src.maths.retrieval import Predictor
from src.settings.contrast import Contrast, Similarity

Real = Sequence[Tensor]  # of a split: images (N, C, H, W) and labels (N,); or of tuples what `Tuples` says


class Task(Protocol):
    """One of the two."""

    @property
    def headline(self) -> str:
        """The figure that counts, a fraction."""
        ...

    @property
    def loss(self) -> Loss:
        """Of a batch's outputs and labels."""
        ...

    @property
    def splits_batches(self) -> bool:
        """Whether a batch's loss is the mean of the losses of its parts."""
        ...

    def gathered(self, batch: Tensor, real: Real) -> Tensor:
        """What the network reads, from what a batch's index takes of the first tensor of a split."""
        ...

    def measured(self, predict: Predictor, real: Real) -> Tensor:
        """What figures are made from, of a trained network on a split."""
        ...

    def figures(self, measured: Tensor, labels: Tensor) -> dict[str, float]:
        """By their names, the one that counts first; `labels` are the second tensor of the split."""
        ...


@dataclass(frozen=True)
class Classes:
    """Images (N, C, H, W) and their classes (N,): cross-entropy and accuracy."""

    headline: str = "accuracy"
    loss: Loss = F.cross_entropy
    splits_batches: bool = True

    def gathered(self, batch: Tensor, real: Real) -> Tensor:
        return batch

    def measured(self, predict: Predictor, real: Real) -> Tensor:
        """Predicted classes (N,)."""
        return scores.predictions(predict, real[0])

    def figures(self, measured: Tensor, labels: Tensor) -> dict[str, float]:
        return {"accuracy": scores.accuracy(measured, labels)}


@dataclass(frozen=True)
class Tuples:
    """Aligned items of M modalities: contrastive loss and recall.

    A split is rows (N, M) of places among the items, their numbers (N,), the items (n_m, D_m) of each modality as its encoder
    reads them, and the group (n_m,) of each: items of one group belong together.
    """

    shape: TupleShape
    contrastive: Contrastive
    headline: str = "recall"
    splits_batches: bool = False

    @property
    def loss(self) -> Loss:
        return self.contrastive

    def gathered(self, batch: Tensor, real: Real) -> Tensor:
        """Tuples (..., D) of rows (..., M)."""
        items, _ = self._parts(real)
        return torch.cat([own[batch[..., place]] for place, own in enumerate(items)], dim=-1)

    def measured(self, predict: Predictor, real: Real) -> Tensor:
        """Recalls, in the order of `figures`."""
        return retrieval.recalls(predict, *self._parts(real))

    def figures(self, measured: Tensor, labels: Tensor) -> dict[str, float]:
        """The mean of all, then each by query, what is looked for, and how many are looked at."""
        names = retrieval.names(self.shape.names)
        return {"recall": measured.mean().item(), **dict(zip(names, measured.tolist(), strict=True))}

    def _parts(self, real: Real) -> tuple[Real, Real]:
        """Items and groups."""
        count = len(self.shape.modalities)
        return real[2 : 2 + count], real[2 + count :]


CLASSES = Classes()


def of(shape: Shape, contrast: Contrast | None, similarity: Similarity | None = None) -> Task:
    """The task of networks that read this shape; the loss of tuples is MTT-VL's where none is told."""
    if isinstance(shape, TupleShape):
        return Tuples(shape, Contrastive(contrast or Contrast(), similarity))
    return CLASSES
