"""The first images of the synthetic set, chosen among the real ones. Source: AST part 3 (representative initialisation)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from src.ground.errors import DataError


def check_ipc(ipc: int, counts: Mapping[str, int], who: str) -> None:
    """Raises DataError where the smallest class holds fewer training images than ipc; `counts` by class name."""
    name, count = min(counts.items(), key=lambda item: item[1])
    if ipc > count:
        raise DataError(
            f"{who}: ipc {ipc} exceeds the smallest class, '{name}', with {count} training images: set ipc to {count} or less"
        )


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


def representative_indices(logits: Tensor, labels: Tensor, classes: int, ipc: int, seed: int) -> Tensor:
    """(S,) indices of real images: for each class the distinct images nearest to ipc K-means centres of an expert's logits.

    `logits` (N, K) are the expert's on all real images. Where two centres share a nearest image, the assignment of distinct
    images with the least total squared distance is taken, so that every class has exactly ipc images, none twice.
    """
    chosen = []
    for k in range(classes):
        members = (labels == k).nonzero().squeeze(1)
        points = logits[members].detach().cpu().double().numpy()  # (n, K)
        chosen.append(members[torch.from_numpy(_nearest_to_centres(points, ipc, seed))])
    return torch.cat(chosen)


def _nearest_to_centres(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices (count,) of distinct points, one for each K-means centre."""
    with threadpool_limits(1):  # threads add up the centres in varying order, which changes bytes
        centres = KMeans(count, n_init=10, random_state=seed % 2**32).fit(points).cluster_centers_
    distances = ((centres[:, None] - points[None]) ** 2).sum(-1)  # (count, n)
    return np.asarray(linear_sum_assignment(distances)[1])
