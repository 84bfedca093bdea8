"""Contrastive losses of tuples, and the similarity that is their target: how much each tuple is like each other one.

Sources: MTT-VL (arXiv 2308.07545) for InfoNCE; LoRS (2406.03793) and its public code for the weighted binary cross-entropy, for
InfoNCE with a target that is no identity, and for the target of low rank. The shared proxy is ours, after the idea of HoPA
(2604.10666), whose formulas were not at hand: instead of w, L and R of each of the M (M - 1) / 2 pairs of modalities, a tuple
has r numbers z, and all pairs take I + (a / r) Z Z' for their target. It is symmetric, as likeness of tuples is, and no more
numbers come with more modalities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from src.settings.contrast import Contrast, Similarity

LIKE = 0.5  # a target above it says that two tuples are alike (LoRS)
BEFORE = 1  # numbers of a tuple and pair before those of L and R: w


@dataclass(frozen=True)
class Contrastive:
    """The loss of directions (B, M, E) and labels: places (B,) of tuples that are like none but themselves, or the numbers of
    their similarity (B, q). It is the mean over all pairs of modalities.
    """

    settings: Contrast
    similarity: Similarity | None = None

    def __call__(self, directions: Tensor, labels: Tensor) -> Tensor:
        modalities = directions.unbind(1)
        goals = targets(labels, self.similarity, pairs(len(modalities))).to(directions.dtype)
        loss = LOSSES[self.settings.loss]
        found = [
            loss(one @ other.T / self.settings.temperature, goal)
            for (one, other), goal in zip(combinations(modalities, 2), goals, strict=True)
        ]
        return torch.stack(found).mean()


def pairs(modalities: int) -> int:
    """P, pairs of so many modalities."""
    return modalities * (modalities - 1) // 2


def numbers(similarity: Similarity, modalities: int) -> int:
    """q, learned numbers of each tuple."""
    return similarity.rank if similarity.kind == "proxy" else pairs(modalities) * (BEFORE + 2 * similarity.rank)


def first(similarity: Similarity | None, count: int, modalities: int, generator: torch.Generator) -> Tensor:
    """The labels of so many tuples before the first iteration: their places (S,), or the numbers of their similarity (S, q)."""
    if similarity is None:
        return torch.arange(count)
    if similarity.kind == "proxy":
        return similarity.spread * torch.randn(count, similarity.rank, generator=generator)
    left = torch.randn(count, pairs(modalities), similarity.rank, generator=generator)
    return torch.cat((torch.ones_like(left[..., :1]), left, torch.zeros_like(left)), dim=2).flatten(1)


def targets(labels: Tensor, similarity: Similarity | None, count: int) -> Tensor:
    """The similarity of a batch of tuples for each of so many pairs of modalities, (P, B, B)."""
    itself = torch.eye(len(labels), device=labels.device)
    if similarity is None:
        return itself.expand(count, -1, -1)
    itself, scale = itself.to(labels.dtype), similarity.scale / similarity.rank
    if similarity.kind == "proxy":
        return (itself + scale * labels @ labels.T).expand(count, -1, -1)
    own = labels.unflatten(1, (count, -1)).transpose(0, 1)  # (P, B, 1 + 2 r)
    weights, left, right = own.split((BEFORE, similarity.rank, similarity.rank), dim=2)
    found: Tensor = weights * itself + scale * left @ right.transpose(1, 2)
    return found


def infonce(logits: Tensor, goal: Tensor) -> Tensor:
    """Of similarities (B, B) and their target: the cross-entropy of rows and that of columns, their mean."""
    return -(goal * (logits.log_softmax(1) + logits.log_softmax(0))).sum() / (2 * len(logits))


def weighted_bce(logits: Tensor, goal: Tensor) -> Tensor:
    """Of similarities (B, B) and their target: the mean of those that are alike and of those that are not, half each."""
    each = F.softplus(logits) - goal * logits  # binary cross-entropy, also of a target beyond 0 to 1
    alike = (goal.detach() > LIKE).to(each)
    other = 1 - alike
    return ((alike * each).sum() / alike.sum().clamp_min(1) + (other * each).sum() / other.sum().clamp_min(1)) / 2


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"infonce": infonce, "wbce": weighted_bce}
