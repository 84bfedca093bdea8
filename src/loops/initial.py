"""The synthetic set before the first iteration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from src.ground.seeding import generator, seed_of
from src.maths import initialisation, scores
from src.maths.networks import FlatNetwork


def images(
    kind: str,
    ipc: int,
    seed: int,
    real: Tensor,
    real_labels: Tensor,
    counts: Mapping[str, int],
    network: FlatNetwork,
    last: Callable[[], Tensor],
    who: str,
) -> tuple[Tensor, Tensor]:
    """Images (S, C, H, W) and labels (S,), class by class, of a kind that the settings' `initialisation` names.

    Real images (N, C, H, W) are as networks read them, `counts` by class name; `last` gives the first expert's last parameters
    (P,), where it is to choose. Raises DataError where a class holds fewer than ipc; `who` says whose ipc that is.
    """
    initialisation.check_ipc(ipc, counts, who)
    labels, classes = initialisation.synthetic_labels(len(counts), ipc), len(counts)
    draws = generator(seed, "distill", "initialisation")
    if kind == "noise":
        return torch.randn(len(labels), *real.shape[1:], generator=draws), labels
    if kind == "random":
        return real[initialisation.random_indices(real_labels, classes, ipc, draws)], labels
    points = _seen(network, last(), real, embeddings=kind != "representative")
    if kind == "herding":
        return real[initialisation.herding_indices(points, real_labels, classes, ipc)], labels
    if kind == "k_center":
        return real[initialisation.k_center_indices(points, real_labels, classes, ipc)], labels
    seed = seed_of(seed, "distill", "k-means")
    return real[initialisation.representative_indices(points, real_labels, classes, ipc, seed)], labels


def _seen(network: FlatNetwork, theta: Tensor, real: Tensor, embeddings: bool) -> Tensor:
    """Logits (N, K) of an expert, or what its last layer reads (N, F)."""
    look = network.features if embeddings else network
    with torch.no_grad():
        return torch.cat([look(theta, chunk) for chunk in real.split(scores.chunk_of(real.shape[-1]))])
