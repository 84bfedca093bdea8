"""Retrieval between modalities: how often what belongs to an item is among the nearest of another modality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import torch
from torch import Tensor

LOOKED_AT = (1, 5, 10)  # nearest items
CHUNK = 1024  # items encoded, or looked up, at once

Predictor = Callable[..., Tensor]  # images (B, C, H, W) -> (B, K); items (n, D_m), modality=m -> directions (n, E)


def names(modalities: Sequence[str]) -> list[str]:
    """Of `recalls`: text_to_image_r5 is the recall at 5 of images that are looked for by texts."""
    return [f"{query}_to_{wanted}_r{count}" for query, wanted in permutations(modalities, 2) for count in LOOKED_AT]


def recalls(predict: Predictor, items: Sequence[Tensor], groups: Sequence[Tensor]) -> Tensor:
    """Fractions (M (M - 1) 3,), every modality looking for every other one, in the order of `names`."""
    found = [directions(predict, own, modality) for modality, own in enumerate(items)]
    values = [recall(found[a], groups[a], found[b], groups[b]) for a, b in permutations(range(len(items)), 2)]
    return torch.cat(values)


def directions(predict: Predictor, items: Tensor, modality: int) -> Tensor:
    """(n, E) of items (n, D_m)."""
    with torch.no_grad():
        return torch.cat([predict(chunk, modality=modality) for chunk in items.split(CHUNK)])


def recall(queries: Tensor, groups: Tensor, gallery: Tensor, theirs: Tensor) -> Tensor:
    """Of queries (n, E) the share that has an item of its group among its nearest of a gallery (m, E), for each of LOOKED_AT.

    Queries to which nothing in the gallery belongs do not count.
    """
    hits = []
    for own, group in zip(queries.split(CHUNK), groups.split(CHUNK), strict=True):
        nearest = (own @ gallery.T).topk(min(max(LOOKED_AT), len(gallery)), dim=1).indices
        hits.append((theirs[nearest] == group[:, None])[torch.isin(group, theirs)])
    hit = torch.cat(hits)
    return torch.stack([hit[:, :count].any(dim=1).double().mean() for count in LOOKED_AT])
