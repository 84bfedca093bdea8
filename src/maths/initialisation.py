"""The first images of the synthetic set, chosen among the real ones: where distillation starts, or a baseline by itself.

Sources: AST part 3 (representative); DC-BENCH (k_means_embeddings); iCaRL, algorithm 4 (herding); Sener and Savarese, "Active
learning for convolutional neural networks: a core-set approach", algorithm 1 (k_center); DATM (classified).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from src.ground.errors import DataError


def check_ipc(ipc: int, counts: Mapping[str, int], who: str) -> None:
    """Raises DataError where the smallest class holds fewer training images than ipc; `counts` by class name."""
    name, count = min(counts.items(), key=lambda item: item[1])
    if ipc > count:
        raise DataError(
            f"{who}: ipc {ipc} exceeds the smallest class, '{name}', with {count} training images: set ipc to {count} or less"
        )


def check_batch(batch: int | None, count: int, who: str) -> None:
    """Raises DataError where a step is to take more images than there are; `who` says whose batch_syn that is."""
    if batch is not None and batch > count:
        text = f"{who}: {batch} exceeds the {count} synthetic images"
        raise DataError(f"{text}: lower it, or set null for all")


def synthetic_labels(classes: int, ipc: int) -> Tensor:
    """(S,) class by class."""
    return torch.arange(classes).repeat_interleave(ipc)


def random_indices(labels: Tensor, classes: int, ipc: int, generator: torch.Generator) -> Tensor:
    """(S,) indices of real images, ipc a class, drawn without replacement."""
    chosen = []
    for k in range(classes):
        members = (labels == k).nonzero().squeeze(1)
        chosen.append(members[torch.randperm(len(members), generator=generator)[:ipc]])
    return torch.cat(chosen)


def classified_indices(
    logits: Tensor, labels: Tensor, counts: Mapping[str, int], ipc: int, generator: torch.Generator, who: str
) -> Tensor:
    """(S,) indices of real images: ipc a class, drawn without replacement among those that an expert classifies rightly.

    `logits` (N, K) are the expert's, `counts` by class name. Raises DataError where these are fewer than ipc.
    """
    right = logits.argmax(dim=1) == labels
    found = {name: int((right & (labels == k)).sum()) for k, name in enumerate(counts)}
    name, fewest = min(found.items(), key=lambda item: item[1])
    if ipc > fewest:
        raise DataError(
            f"{who}: of class '{name}' the first expert classifies {fewest} training images rightly, fewer than ipc {ipc}: "
            "train its experts longer, or choose another initialisation"
        )
    members = right.nonzero().squeeze(1)
    return members[random_indices(labels[members], len(counts), ipc, generator)]


def representative_indices(points: Tensor, labels: Tensor, classes: int, ipc: int, seed: int) -> Tensor:
    """(S,) indices of real images: for each class the distinct images nearest to ipc K-means centres.

    `points` (N, F) are an expert's logits (AST) or embeddings (DC-BENCH) of all real images. Where two centres share a nearest
    image, the assignment of distinct images with the least total squared distance is taken, so that every class has exactly
    ipc images, none twice.
    """
    return _each_class(points, labels, classes, lambda own: _nearest_to_centres(own, ipc, seed))


def herding_indices(features: Tensor, labels: Tensor, classes: int, ipc: int) -> Tensor:
    """(S,) indices of real images: one after the other, the image that brings the mean of those chosen nearest to its class's.

    `features` (N, F) are an expert's embeddings of all real images.
    """
    return _each_class(features, labels, classes, lambda points: _herded(points, ipc))


def k_center_indices(features: Tensor, labels: Tensor, classes: int, ipc: int) -> Tensor:
    """(S,) indices of real images: the one nearest to its class's mean, then always the one farthest from all chosen ones.

    `features` (N, F) are an expert's embeddings of all real images.
    """
    return _each_class(features, labels, classes, lambda points: _spread(points, ipc))


def _each_class(features: Tensor, labels: Tensor, classes: int, choose: Callable[[np.ndarray], list[int]]) -> Tensor:
    chosen = []
    for k in range(classes):
        members = (labels == k).nonzero().squeeze(1)
        chosen.append(members[torch.tensor(choose(features[members].detach().cpu().double().numpy()))])
    return torch.cat(chosen)


def _herded(points: np.ndarray, count: int) -> list[int]:
    mean, total = points.mean(axis=0), np.zeros(points.shape[1])
    chosen: list[int] = []
    for number in range(1, count + 1):
        distances = np.linalg.norm(mean - (total + points) / number, axis=1)
        distances[chosen] = np.inf
        chosen.append(int(distances.argmin()))
        total += points[chosen[-1]]
    return chosen


def _spread(points: np.ndarray, count: int) -> list[int]:
    chosen = [int(np.linalg.norm(points - points.mean(axis=0), axis=1).argmin())]
    nearest = np.linalg.norm(points - points[chosen[0]], axis=1)  # distance to the nearest chosen one
    for _ in range(count - 1):
        nearest[chosen] = -1.0  # also among equal images none twice
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen


def _nearest_to_centres(points: np.ndarray, count: int, seed: int) -> list[int]:
    """Indices of distinct points, one for each K-means centre."""
    from scipy.optimize import linear_sum_assignment  # these take longer to import than most stages take to work
    from scipy.spatial.distance import cdist
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # threads add up the centres in varying order, which changes bytes
        centres = KMeans(count, n_init=10, random_state=seed % 2**32).fit(points).cluster_centers_
    return [int(index) for index in linear_sum_assignment(cdist(centres, points, "sqeuclidean"))[1]]
