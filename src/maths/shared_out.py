"""Derivatives of a batch that several ranks share out: each takes a part of the images, and all get those of the whole.

The loss is the mean over the images, so that its derivatives are the parts' own, weighted by their numbers of images. Ranks
gather all parts and add them in the order of ranks, each for itself: the sum has the same bits on every rank, and again for as
many ranks.
"""

from __future__ import annotations

from collections.abc import Callable

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
        part, share = self._part(len(labels), self._rank)
        if not share:
            return _summed(self._gather(torch.zeros_like(theta))), None
        gradient, sweep = self._own.sweep(theta, batch[part], labels[part])
        return _summed(self._gather(share * gradient)), sweep

    def second(self, theta: Tensor, batch: Tensor, labels: Tensor, a: Tensor, sweep: Sweep | None = None) -> tuple[Tensor, ...]:
        part, share = self._part(len(labels), self._rank)
        mine = [
            torch.zeros_like(theta),
            *(torch.zeros_like(self._largest(x)) for x in (batch, labels) if x.is_floating_point()),
        ]
        if share:
            h, *of_images = self._own.second(theta, batch[part], labels[part], a, sweep)
            mine[0] += share * h
            for whole, own in zip(mine[1:], of_images, strict=True):
                whole[: len(own)] = share * own
        found = self._gather(torch.cat([one.reshape(-1) for one in mine]))
        h, *rest = found.split([one.numel() for one in mine], dim=1)
        return _summed(h), *(self._joined(part, like, len(labels)) for part, like in zip(rest, mine[1:], strict=True))

    def room(self, batch: Tensor, taken: int) -> int:
        return self._own.room(self._largest(batch), taken)

    def kept_bytes(self, batch: Tensor, taken: int, steps: int) -> int:
        return self._own.kept_bytes(self._largest(batch), taken, steps)

    def _largest(self, batch: Tensor) -> Tensor:
        """As many images as a rank takes at most."""
        return batch[: -(-len(batch) // self._ranks)]

    def _part(self, count: int, rank: int) -> tuple[slice, float]:
        """A rank's images, and their share of all; the parts differ by one image at most."""
        first, end = (count * one // self._ranks for one in (rank, rank + 1))
        return slice(first, end), (end - first) / count

    def _joined(self, found: Tensor, like: Tensor, count: int) -> Tensor:
        """The parts (G, n) of all ranks, each as `like` with images at its end that it has none for, one after the other."""
        sizes = [len(range(count)[self._part(count, rank)[0]]) for rank in range(self._ranks)]
        return torch.cat([part.view(like.shape)[:size] for part, size in zip(found, sizes, strict=True)])


def _summed(found: Tensor) -> Tensor:
    """(G, n) in the order of ranks."""
    total = found[0]
    for other in found[1:]:
        total = total + other
    return total
