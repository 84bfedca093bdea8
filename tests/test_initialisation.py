"""Choice of the first synthetic images: exactly ipc a class, distinct, and near the centres."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from src.ground.errors import DataError
from src.loops.initial import softened
from src.maths.initialisation import (
    check_ipc,
    herding_indices,
    k_center_indices,
    random_indices,
    representative_indices,
    synthetic_labels,
)

K = 3


def test_learned_labels_begin_as_sure_as_they_are_told() -> None:
    """From classes; soft labels stay as they are, and a class without any share of one has a logit that is finite."""
    found = softened(torch.tensor([0, 2]), 4, 0.92).softmax(1)
    torch.testing.assert_close(found, torch.tensor([[0.94, 0.02, 0.02, 0.02], [0.02, 0.02, 0.94, 0.02]]))
    soft = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    logits = softened(soft, 4, 0.92)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.softmax(1), soft)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int = 80, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (K * count, K) that favour the right class, and labels, shuffled."""
    labels = torch.arange(K).repeat_interleave(count)[torch.randperm(K * count, generator=seeded(seed))]
    logits = 4 * torch.nn.functional.one_hot(labels, K) + torch.randn(K * count, K, generator=seeded(seed + 1))
    return logits, labels


def check_choice(chosen: Tensor, labels: Tensor, ipc: int) -> None:
    assert len(chosen) == K * ipc == len(set(chosen.tolist()))
    assert torch.equal(labels[chosen], synthetic_labels(K, ipc))


def test_synthetic_labels_are_class_by_class() -> None:
    assert synthetic_labels(3, 2).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("ipc", [1, 3, 10, 50, 80])
def test_representatives_are_ipc_distinct_images_of_each_class(ipc: int) -> None:
    logits, labels = blobs()
    check_choice(representative_indices(logits, labels, K, ipc, seed=0), labels, ipc)


def test_one_representative_is_the_image_nearest_to_the_mean() -> None:
    logits, labels = blobs()
    chosen = representative_indices(logits, labels, K, 1, seed=0)
    for k in range(K):
        members = [i for i in range(len(labels)) if labels[i] == k]
        mean = sum(logits[i] for i in members) / len(members)
        assert chosen[k] == min(members, key=lambda i: (logits[i] - mean).norm().item())


@pytest.mark.parametrize("ipc", [2, 5])
def test_separated_clusters_give_one_image_each_the_nearest_to_its_mean(ipc: int) -> None:
    cluster = torch.arange(ipc).repeat(K * 12)
    labels = torch.arange(K).repeat_interleave(12 * ipc)
    angle = 2 * torch.pi * cluster / ipc
    logits = 100 * torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], 1)
    logits += torch.randn(logits.shape, generator=seeded(0))
    chosen = representative_indices(logits, labels, K, ipc, seed=0)
    check_choice(chosen, labels, ipc)
    expected = set()
    for k in range(K):
        for c in range(ipc):
            members = ((labels == k) & (cluster == c)).nonzero().squeeze(1)
            distance = (logits[members] - logits[members].mean(0)).norm(dim=1)
            expected.add(members[distance.argmin()].item())
    assert set(chosen.tolist()) == expected


def test_equal_points_still_give_distinct_images() -> None:
    labels = torch.arange(K).repeat(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than centres
        check_choice(representative_indices(torch.ones(30, K), labels, K, 4, seed=0), labels, 4)


def test_a_shared_nearest_image_goes_to_the_cheaper_assignment() -> None:
    """Two far groups of copies and three centres: the copies of one group serve two of them."""
    logits = torch.tensor([[0.0], [0.0], [0.0], [9.0], [9.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        chosen = representative_indices(logits, torch.zeros(5, dtype=torch.long), 1, 3, seed=0)
    assert len(set(chosen.tolist())) == 3
    assert set(logits[chosen].squeeze(1).tolist()) == {0.0, 9.0}


def test_representatives_follow_the_seed() -> None:
    logits, labels = blobs()
    first = representative_indices(logits, labels, K, 10, seed=2**63 - 1)
    assert torch.equal(first, representative_indices(logits, labels, K, 10, seed=2**63 - 1))
    others = [representative_indices(logits, labels, K, 10, seed=s) for s in range(3)]
    assert any(not torch.equal(first, other) for other in others)


def test_random_images_are_drawn_without_replacement() -> None:
    _, labels = blobs()
    for ipc in (1, 7, 80):
        check_choice(random_indices(labels, K, ipc, seeded(0)), labels, ipc)
    first, again, other = (random_indices(labels, K, 7, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_real_image_can_be_drawn() -> None:
    labels = torch.arange(K).repeat(4)
    generator = seeded(0)
    seen = {i for _ in range(60) for i in random_indices(labels, K, 1, generator).tolist()}
    assert seen == set(range(12))


def test_ipc_beyond_the_smallest_class_is_refused() -> None:
    counts = {"zero": 30, "one": 12, "two": 25}
    check_ipc(12, counts, "run 'r'")
    with pytest.raises(DataError) as caught:
        check_ipc(13, counts, "run 'r'")
    for part in ("run 'r'", "ipc 13", "'one'", "12 training images", "12 or less"):
        assert part in str(caught.value)


def greedy(points: list[Tensor], count: int, cost: Callable[[list[Tensor], Tensor], float]) -> list[int]:
    """By trying every image at every step, the way the definitions read."""
    chosen: list[int] = []
    for _ in range(count):
        left = [i for i in range(len(points)) if i not in chosen]
        chosen.append(min(left, key=lambda i: cost([points[j] for j in chosen], points[i])))
    return chosen


@pytest.mark.parametrize("ipc", [1, 2, 7])
def test_herding_follows_its_definition(ipc: int) -> None:
    """Each choice brings the mean of the chosen as near to the class's mean as one image can."""
    features, labels = blobs(count=15)
    chosen = herding_indices(features, labels, K, ipc)
    check_choice(chosen, labels, ipc)
    for k in range(K):
        points = list(features[labels == k].double())
        mean = torch.stack(points).mean(0)
        expected = greedy(points, ipc, lambda old, new: (torch.stack([*old, new]).mean(0) - mean).norm().item())  # noqa: B023
        assert torch.equal(features[chosen[k * ipc : (k + 1) * ipc]].double(), torch.stack([points[i] for i in expected]))


@pytest.mark.parametrize("ipc", [1, 2, 7])
def test_k_center_follows_its_definition(ipc: int) -> None:
    """First the image nearest to the mean, then always the one whose nearest chosen image is farthest."""
    features, labels = blobs(count=15)
    chosen = k_center_indices(features, labels, K, ipc)
    check_choice(chosen, labels, ipc)
    for k in range(K):
        points = list(features[labels == k].double())
        mean = torch.stack(points).mean(0)

        def cost(old: list[Tensor], new: Tensor) -> float:
            return -min((new - one).norm().item() for one in old) if old else (new - mean).norm().item()  # noqa: B023

        expected = greedy(points, ipc, cost)
        assert torch.equal(features[chosen[k * ipc : (k + 1) * ipc]].double(), torch.stack([points[i] for i in expected]))


def test_k_center_covers_twice_as_well_as_the_best_at_worst() -> None:
    """The greedy choice's radius is at most twice the optimum's (Gonzalez), found here by trying all pairs."""
    points = torch.randn(12, 2, generator=seeded(3)).double()
    labels = torch.zeros(12, dtype=torch.long)

    def radius(centres: list[int]) -> float:
        return torch.cdist(points, points[centres]).min(dim=1).values.max().item()

    best = min(radius([a, b, c]) for a in range(12) for b in range(a) for c in range(b))
    assert best <= radius(k_center_indices(points, labels, 1, 3).tolist()) <= 2 * best


@pytest.mark.parametrize("choose", [herding_indices, k_center_indices])
def test_equal_images_are_not_chosen_twice(choose: Callable[..., Tensor]) -> None:
    labels = torch.arange(K).repeat(10)
    check_choice(choose(torch.ones(30, 4), labels, K, 10), labels, 10)
