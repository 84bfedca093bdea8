"""The synthetic set before the first iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from src.ground.errors import DataError
from src.ground.seeding import generator, seed_of
from src.maths import initialisation, scores
from src.maths.networks import FlatNetwork
from src.maths.tasks import Real, Tuples


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
    points = _seen(network, last(), real, embeddings=kind not in ("representative", "classified"))
    if kind == "classified":
        return real[initialisation.classified_indices(points, real_labels, counts, ipc, draws, who)], labels
    if kind == "herding":
        return real[initialisation.herding_indices(points, real_labels, classes, ipc)], labels
    if kind == "k_center":
        return real[initialisation.k_center_indices(points, real_labels, classes, ipc)], labels
    seed = seed_of(seed, "distill", "k-means")
    return real[initialisation.representative_indices(points, real_labels, classes, ipc, seed)], labels


def tuples(
    kind: str, count: int, seed: int, real: Real, task: Tuples, network: FlatNetwork, last: Callable[[], Tensor], who: str
) -> Tensor:
    """So many tuples (S, D) of a kind that the settings' `initialisation` names, of a split as the task has it.

    Herding and k-center go by the directions of all their items, and take all tuples for one class. Raises DataError where the
    split has fewer; `who` says whose number that is.
    """
    rows = real[0]
    if count > len(rows):
        raise DataError(f"{who}: {count} exceeds the {len(rows)} tuples of the training split: set it to {len(rows)} or less")
    draws, alike = generator(seed, "distill", "initialisation"), torch.zeros(len(rows), dtype=torch.long)
    if kind == "noise":
        return torch.randn(count, *task.shape.batch, generator=draws)
    if kind == "random":
        return task.gathered(rows[initialisation.random_indices(alike, 1, count, draws)], real)
    theta, choose = last(), initialisation.herding_indices if kind == "herding" else initialisation.k_center_indices
    with torch.no_grad():
        points = [network(theta, task.gathered(chunk, real)).flatten(1) for chunk in rows.split(scores.CHUNK)]
    return task.gathered(rows[choose(torch.cat(points), alike, 1, count)], real)


def logits(network: FlatNetwork, thetas: Iterable[Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """(S, K), of each image the mean of the logits of those experts (P,) that classify it rightly (DATM).

    Raises DataError where there is none for an image (C, H, W) of the class that `labels` (S,) or (S, K) have.
    """
    classes = labels.argmax(dim=1) if labels.is_floating_point() else labels
    total, count = torch.zeros(()), torch.zeros(len(images), 1)
    for theta in thetas:
        found = _seen(network, theta, images, embeddings=False)
        right = (found.argmax(dim=1) == classes)[:, None].to(found)
        total, count = total + right * found, count + right
    wrong = int((count == 0).sum())
    if wrong:
        raise DataError(
            f"{wrong} of the {len(images)} initial images are classified rightly by no expert, whose logits their labels are "
            "to start from: choose initialisation classified, or labels fixed"
        )
    return total / count


def softened(labels: Tensor, classes: int, certainty: float) -> Tensor:
    """Logits (S, K) of soft labels (S, K), or of classes (S,), of which each gets `certainty` and an even share of the rest."""
    if not labels.is_floating_point():
        labels = certainty * F.one_hot(labels, classes).float() + (1 - certainty) / classes
    return labels.clamp_min(torch.finfo(labels.dtype).tiny).log()


def _seen(network: FlatNetwork, theta: Tensor, real: Tensor, embeddings: bool) -> Tensor:
    """Logits (N, K) of an expert, or what its last layer reads (N, F)."""
    look = network.features if embeddings else network
    with torch.no_grad():
        return torch.cat([look(theta, chunk) for chunk in real.split(scores.chunk_of(real.shape[-1]))])
