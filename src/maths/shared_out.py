"""Derivatives of a batch that several ranks share out: each takes a part of the images, and all get those of the whole.

The loss is the mean over the images, so that its derivatives are the parts' own, weighted by their numbers of images. Ranks
gather all parts and add them in the order of ranks, each for itself: the sum has the same bits on every rank, and again for as
many ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from src.maths.by_hand import Sweep
from src.maths.derivatives import Derivatives

Gather = Callable[[Tensor], Tensor]  # numbers (n,) of this rank -> (G, n) of all, in the order of ranks


class SharedOut(Derivatives):
    """As `Derivatives`, which it takes of this rank's part; all ranks ask for the same at the same time."""

    def __init__(self, own: Derivatives, rank: int, ranks: int, gather: Gather):
        self._own, self._rank, self._ranks, self._gather = own, rank, ranks, gather

    def loss(self, theta: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        return self._own.loss(theta, batch, labels)

    def sweep(self, theta: Tensor, batch: Tensor, labels: Tensor) -> tuple[Tensor, Sweep | None]:
        part, share = self._part(len(labels))
        if not share:
            return self._summed(torch.zeros_like(theta)), None
        gradient, sweep = self._own.sweep(theta, batch[part], labels[part])
        return self._summed(share * gradient), sweep

    def second(self, theta: Tensor, batch: Tensor, labels: Tensor, a: Tensor, sweep: Sweep | None = None) -> tuple[Tensor, ...]:
        part, share = self._part(len(labels))
        wholes = [torch.zeros_like(one) for one in (theta, batch, labels) if one.is_floating_point()]
        if share:
            h, *of_images = self._own.second(theta, batch[part], labels[part], a, sweep)
            wholes[0] += share * h
            for whole, found in zip(wholes[1:], of_images, strict=True):
                whole[part] = share * found
        return self._apart(self._summed(torch.cat([one.reshape(-1) for one in wholes])), wholes)

    def room(self, batch: Tensor, taken: int) -> int:
        return self._own.room(self._largest(batch), taken)

    def kept_bytes(self, batch: Tensor, taken: int, steps: int) -> int:
        return self._own.kept_bytes(self._largest(batch), taken, steps)

    def _largest(self, batch: Tensor) -> Tensor:
        return batch[: -(-len(batch) // self._ranks)]

    def _part(self, count: int) -> tuple[slice, float]:
        """This rank's images, and their share of all; the parts differ by one image at most."""
        first, end = (count * one // self._ranks for one in (self._rank, self._rank + 1))
        return slice(first, end), (end - first) / count

    def _summed(self, mine: Tensor) -> Tensor:
        found = self._gather(mine)
        total = found[0]
        for other in found[1:]:
            total = total + other
        return total

    def _apart(self, flat: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        parts = flat.split([one.numel() for one in like])
        return tuple(part.view(one.shape) for part, one in zip(parts, like, strict=True))
