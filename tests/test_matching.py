"""Way points, balance and perturbation against their closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from src.maths import matching
from src.maths.networks import FlatNetwork, flatten
from src.maths.targets import snapshots
from src.settings.distillation import Distillation
from tests.reference import small_network


def settings(**changes: Any) -> Distillation:
    return Distillation(**{"initialisation": "noise", "iterations": 1, "syn_steps": 20, "expert_epochs": 3, **changes})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def theta() -> Tensor:
    return torch.randn(11, generator=seeded(0), dtype=torch.float64)


@pytest.fixture
def targets() -> Tensor:
    return torch.randn(3, 11, generator=seeded(1), dtype=torch.float64)


@pytest.mark.parametrize(
    ("syn_steps", "expert_epochs", "expected"),
    [(20, 3, [6, 12, 20]), (20, 1, [20]), (30, 2, [15, 30]), (10, 4, [2, 4, 6, 10]), (5, 5, [1, 2, 3, 4, 5])],
)
def test_ends(syn_steps: int, expert_epochs: int, expected: list[int]) -> None:
    assert snapshots.ends(syn_steps, expert_epochs) == expected


def test_balance_is_the_papers_logarithm() -> None:
    chosen = settings(balanced_loss=True, max_start_epoch=20)  # m = 10
    for s in range(20):
        expected = math.log(s - 10 + 8) / math.log(5) if s >= 10 else math.log(5) / math.log(10 - s + 8)
        assert matching.balance(s, chosen) == pytest.approx(expected, rel=1e-14)
    values = [matching.balance(s, chosen) for s in range(20)]
    assert values == sorted(values)
    assert values[9] == pytest.approx(0.7325, abs=1e-4)
    assert values[10] == pytest.approx(1.2920, abs=1e-4)


def test_balance_takes_half_of_an_odd_range_downwards() -> None:
    chosen = settings(balanced_loss=True, max_start_epoch=5, balance_base=2.0, balance_offset=4.0)  # m = 2
    assert [matching.balance(s, chosen) for s in (1, 2, 4)] == pytest.approx([1 / math.log2(5), 2, math.log2(6)])


def test_balance_is_one_where_it_is_off() -> None:
    assert all(matching.balance(s, settings(max_start_epoch=20)) == 1 for s in range(20))


@pytest.mark.parametrize(
    ("part", "steps", "weights"),
    [("off", [20], [1]), ("sum", [6, 12, 20], [1, 1, 1]), ("ramp", [6, 12, 20], [1 / 3, 2 / 3, 1])],
)
def test_way_points(part: str, steps: list[int], weights: list[float], theta: Tensor, targets: Tensor) -> None:
    points = snapshots.way_points(theta, targets, settings(intermediate_loss=part))
    assert [p.step for p in points] == steps
    assert [p.weight for p in points] == weights
    for point, target in zip(points, targets[-len(steps) :], strict=True):
        assert torch.equal(point.target, target)
        torch.testing.assert_close(point.scale, ((theta - target) ** 2).sum(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("part", ["off", "sum", "ramp"])
def test_at_the_start_each_term_is_its_weight(part: str, theta: Tensor, targets: Tensor) -> None:
    for point in snapshots.way_points(theta, targets, settings(intermediate_loss=part)):
        assert point.distance(theta).item() == pytest.approx(point.weight, rel=1e-15)
        assert point.distance(point.target) == 0
        # half the way there is a quarter of the squared distance
        assert point.distance((theta + point.target) / 2).item() == pytest.approx(point.weight / 4, rel=1e-14)


def test_pull_is_the_gradient_of_the_distance(theta: Tensor, targets: Tensor) -> None:
    place = torch.randn(11, generator=seeded(2), dtype=torch.float64, requires_grad=True)
    for point in snapshots.way_points(theta, targets, settings(intermediate_loss="ramp")):
        (gradient,) = torch.autograd.grad(point.distance(place), place)
        torch.testing.assert_close(point.pull(place.detach()), gradient, rtol=1e-14, atol=0)


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_perturbation_is_relative_to_each_convolution_weight(strength: float) -> None:
    network = small_network(depth=3)
    start = flatten(network)
    kept = start.clone()
    flat = FlatNetwork(network)
    found = flat.unflatten(matching.perturb(start, flat.convolutions, strength, seeded(5)))
    assert torch.equal(start, kept)
    generator, convolutions = seeded(5), 0
    for name, weight in network.named_parameters():
        expected = weight.detach().clone()
        if weight.dim() == 4:
            d = torch.randn(weight.numel(), generator=generator).double().view_as(weight)
            for i in range(len(expected)):
                expected[i] += strength * (d[i] / d.pow(2).sum().sqrt()) * expected[i]
            convolutions += 1
            assert not torch.equal(found[name], weight)
            torch.testing.assert_close(found[name], expected, rtol=1e-14, atol=0)
        else:
            assert torch.equal(found[name], expected), name
    assert convolutions == 3


def test_each_layer_has_its_own_noise_of_norm_one() -> None:
    theta = torch.ones(24, dtype=torch.float64)
    found = matching.perturb(theta, [slice(0, 10), slice(12, 22)], 1.0, seeded(0)) - theta
    first, second = found[:10], found[12:22]
    assert first.norm().item() == pytest.approx(1)
    assert second.norm().item() == pytest.approx(1)
    assert not torch.allclose(first, second)
    assert found[[10, 11, 22, 23]].eq(0).all()


def test_no_strength_gives_an_equal_copy(theta: Tensor) -> None:
    found = matching.perturb(theta, [slice(0, 5)], 0.0, seeded(0))
    assert torch.equal(found, theta)
    assert found.data_ptr() != theta.data_ptr()


def test_perturbation_follows_the_generator(theta: Tensor) -> None:
    first, again, other = (matching.perturb(theta, [slice(0, 9)], 1.0, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
