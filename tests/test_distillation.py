"""The outer loop: starts, one iteration against its restatement and torch.optim, divergence, and that it learns."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from src.ground.errors import DivergenceError
from src.maths import distillation, inner_loop, matching
from src.maths.derivatives import Derivatives
from src.maths.distillation import Figures, Start, State
from src.maths.inner_loop import InnerRule, InnerStep, MatchingGradient
from src.maths.networks import FlatNetwork, flatten
from src.maths.targets import snapshots
from src.settings.distillation import Distillation
from tests.reference import small_network

K, IPC = 5, 2
S = K * IPC
CPU = torch.device("cpu")
LABELS = torch.arange(K).repeat_interleave(IPC)
NETWORK = FlatNetwork(small_network())
DERIVATIVES = Derivatives(NETWORK)
# every part that an iteration has
PARTS: dict[str, Any] = {
    "batch_syn": 4,
    "inner_momentum": 0.9,
    "inner_weight_decay": 1e-2,
    "augmentation": ("color", "crop", "flip", "rotate"),
    "balanced_loss": True,
    "intermediate_loss": "ramp",
    "weight_perturbation": 1.0,
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed)).double()


def settings(**changes: Any) -> Distillation:
    base = {"initialisation": "noise", "iterations": 1, "syn_steps": 4, "lr_img": 10.0, "lr_lr": 1e-3, "lr_init": 0.05}
    return Distillation(**{**base, "max_start_epoch": 10, **changes})


def start(epoch: int = 0, epochs: int = 2, seed: int = 1) -> Start:
    """A walk of the parameters (M + 1, P) from the network's own."""
    theta = flatten(small_network(seed=seed))
    steps = 0.1 * normal(epochs, len(theta), seed=seed)
    return Start(torch.cat([theta[None], theta + steps.cumsum(0)]), epoch)


def first_state(chosen: Distillation) -> State:
    return distillation.start(normal(S, 2, 8, 8, seed=2), chosen)


def iterate(state: State, starts: list[Start], chosen: Distillation, generator: torch.Generator) -> tuple[State, Figures]:
    return distillation.iterate(NETWORK, DERIVATIVES, state, LABELS, starts, chosen, generator)


def gradient(state: State, one: Start, chosen: Distillation, generator: torch.Generator) -> MatchingGradient:
    """What one trajectory asks for, with the draws in the order of `iterate`: perturbation, then steps."""
    theta = matching.perturb(one.snapshots[0], NETWORK.convolutions, chosen.weight_perturbation, generator)
    drawn = inner_loop.draw_steps(S, chosen.syn_steps, chosen.batch_syn or S, chosen.augmentation, generator)
    steps = [InnerStep(step.index, step.draw.to(CPU, torch.float64)) for step in drawn]
    points = snapshots.way_points(theta, one.snapshots[1:], chosen)
    rule = InnerRule(chosen.inner_momentum, chosen.inner_weight_decay, matching.balance(one.epoch, chosen))
    return inner_loop.matching_gradient(DERIVATIVES, state.images, LABELS, state.syn_lr, theta, steps, points, rule)


def tensors(state: State) -> dict[str, Tensor]:
    """Those that the settings ask for."""
    return {field.name: value for field in fields(state) if (value := getattr(state, field.name)) is not None}


def copied(state: State) -> State:
    return State(**{name: value.clone() for name, value in tensors(state).items()})


def equal(one: State, other: State) -> bool:
    mine, its = tensors(one), tensors(other)
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)


def test_first_state_is_at_rest_at_the_images_and_lr_init() -> None:
    for dtype in (torch.float32, torch.float64):
        images = normal(S, 2, 8, 8, seed=2).to(dtype)
        state = distillation.start(images, settings(lr_init=0.3))
        assert torch.equal(state.images, images)
        assert torch.equal(state.syn_lr, torch.tensor(0.3, dtype=dtype))
        assert torch.equal(state.images_velocity, torch.zeros_like(images))
        assert torch.equal(state.syn_lr_velocity, torch.zeros((), dtype=dtype))


def test_starts_are_uniform_over_experts_and_epochs() -> None:
    experts, epochs, draws = 3, 4, 6000
    chosen, generator = settings(max_start_epoch=epochs), seeded(0)
    counts = torch.zeros(experts, epochs)
    for _ in range(draws):
        counts[distillation.draw_start(experts, chosen, generator)] += 1
    expected = draws / counts.numel()
    assert ((counts - expected) ** 2 / expected).sum() < 31.3  # chi-square, 11 degrees of freedom: one in a thousand


def test_starts_follow_the_generator() -> None:
    def starts(seed: int) -> list[tuple[int, int]]:
        generator = seeded(seed)
        return [distillation.draw_start(100, settings(max_start_epoch=50), generator) for _ in range(20)]

    assert starts(0) == starts(0) != starts(1)
    assert len(set(starts(0))) > 15
    assert distillation.draw_start(1, settings(max_start_epoch=1), seeded(0)) == (0, 0)


@pytest.mark.parametrize("parts", [{}, PARTS], ids=["plain", "every part"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_iterations_are_torchs_sgd(momentum: float, parts: dict[str, Any]) -> None:
    chosen = settings(outer_momentum=momentum, **parts)
    state, first = first_state(chosen), first_state(chosen)
    images, syn_lr = torch.nn.Parameter(first.images.clone()), torch.nn.Parameter(first.syn_lr.clone())
    groups = [{"params": [images], "lr": chosen.lr_img}, {"params": [syn_lr], "lr": chosen.lr_lr}]
    optimiser = torch.optim.SGD(groups, momentum=momentum)
    for iteration in range(5):
        one, before = start(epoch=2 * iteration, seed=iteration), state
        found = gradient(before, one, chosen, seeded(iteration))
        images.grad, syn_lr.grad = found.images, found.syn_lr
        optimiser.step()
        state, figures = iterate(before, [one], chosen, seeded(iteration))
        torch.testing.assert_close(state.images, images.detach(), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(state.syn_lr, syn_lr.detach(), rtol=1e-13, atol=0)
        assert figures.terms == found.terms.tolist()
        assert figures.matching_loss == pytest.approx(found.terms.sum().item())
        assert figures.syn_lr == before.syn_lr.item()
        assert figures.grad_norm_images == pytest.approx(found.images.norm().item())
        assert figures.grad_norm_syn_lr == pytest.approx(found.syn_lr.abs().item())
        assert len(figures.terms) == (2 if parts else 1)
    assert (state.images - first.images).norm() > 0.01
    assert (state.syn_lr - first.syn_lr).abs() > 1e-6


def test_soft_labels_are_followed() -> None:
    chosen, one = settings(**PARTS), start()
    state, hot = first_state(chosen), torch.nn.functional.one_hot(LABELS, K).double()
    (hard, _), (same, _), (other, _) = (
        distillation.iterate(NETWORK, DERIVATIVES, state, labels, [one], chosen, seeded(0))
        for labels in (LABELS, hot, 0.8 * hot + 0.2 / K)
    )
    torch.testing.assert_close(same.images, hard.images, rtol=1e-10, atol=1e-13)
    assert not torch.allclose(other.images, hard.images, rtol=1e-3)


def test_iterate_leaves_its_arguments_as_they_were() -> None:
    chosen, one = settings(**PARTS), start()
    state = first_state(chosen)
    kept, snapshots = copied(state), one.snapshots.clone()
    after, _ = iterate(state, [one, one], chosen, seeded(0))
    assert equal(state, kept)
    assert torch.equal(one.snapshots, snapshots)
    assert not any(value.requires_grad for value in tensors(after).values())


def student(theta: Tensor, images: Tensor, syn_lr: Tensor | float, steps: int) -> Tensor:
    """theta (P,) after plain steps on all images."""
    for _ in range(steps):
        theta = theta - syn_lr * DERIVATIVES.first(theta, images, LABELS)
    return theta


def ahead(state: State, chosen: Distillation, factor: float) -> Start:
    """The target is where the student goes, but `factor` times as far: a faster student is better above 1, worse below 0."""
    theta = start().snapshots[0]
    moved = student(theta, state.images, state.syn_lr, chosen.syn_steps) - theta
    return Start(torch.stack([theta, theta + factor * moved]), 0)


def test_syn_lr_stops_at_its_lower_bound_and_images_go_on() -> None:
    chosen = settings(expert_epochs=1, lr_lr=1e3, syn_lr_min=2e-3, outer_momentum=0.5)
    state = first_state(chosen)
    behind = ahead(state, chosen, -1)
    found = gradient(state, behind, chosen, seeded(0))
    assert found.syn_lr > 0
    assert state.syn_lr - chosen.lr_lr * found.syn_lr < 0
    after, _ = iterate(state, [behind], chosen, seeded(0))
    assert after.syn_lr.item() == 2e-3
    torch.testing.assert_close(after.images, state.images - chosen.lr_img * found.images, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(after.syn_lr_velocity, found.syn_lr)
    for seed in (1, 2):
        before, (after, _) = after, iterate(after, [behind], chosen, seeded(seed))
        assert after.syn_lr.item() == 2e-3
        assert not torch.equal(after.images, before.images)


def test_syn_lr_leaves_its_lower_bound_again() -> None:
    chosen = settings(expert_epochs=1, lr_init=2e-3, syn_lr_min=2e-3)
    state = first_state(chosen)
    after, _ = iterate(state, [ahead(state, chosen, 3)], chosen, seeded(0))
    assert after.syn_lr > 2e-3


def test_syn_lr_without_a_learning_rate_stays() -> None:
    chosen = settings(lr_lr=0.0)
    state = first_state(chosen)
    for seed in range(3):
        state, _ = iterate(state, [start()], chosen, seeded(seed))
    assert state.syn_lr.item() == 0.05


@pytest.mark.parametrize("parts", [{}, PARTS], ids=["plain", "every part"])
def test_several_trajectories_are_averaged(parts: dict[str, Any]) -> None:
    chosen = settings(trajectories_per_iteration=3, **parts)
    state, starts = first_state(chosen), [start(0, seed=1), start(3, seed=2), start(8, seed=3)]
    generator = seeded(7)
    found = [gradient(state, one, chosen, generator) for one in starts]
    after, figures = iterate(state, starts, chosen, seeded(7))
    images, syn_lr, terms = (sum(getattr(one, name) for one in found) / 3 for name in ("images", "syn_lr", "terms"))
    torch.testing.assert_close(after.images_velocity, images, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(after.images, state.images - chosen.lr_img * images, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(after.syn_lr_velocity, syn_lr, rtol=1e-12, atol=0)
    assert figures.terms == pytest.approx(terms.tolist(), rel=1e-12)
    assert figures.grad_norm_images == pytest.approx(images.norm().item(), rel=1e-12)
    assert figures.grad_norm_syn_lr == pytest.approx(syn_lr.abs().item(), rel=1e-12)


def test_a_trajectory_twice_without_chance_is_that_trajectory() -> None:
    chosen = settings()
    state, one = first_state(chosen), start()
    (single, alone), (double, twice) = (iterate(state, [one] * n, chosen, seeded(0)) for n in (1, 2))
    torch.testing.assert_close(double.images, single.images, rtol=1e-12, atol=1e-12)
    assert twice.terms == pytest.approx(alone.terms, rel=1e-12)


def spoilt(where: int, value: float) -> Start:
    one = start()
    one.snapshots[where, 5] = value
    return one


DIVERGING: dict[str, tuple[dict[str, Any], list[Start]]] = {
    "huge lr_init": ({"lr_init": 1e200}, [start()]),
    "nan at the start": ({}, [spoilt(0, math.nan)]),
    "nan at the target": ({}, [spoilt(2, math.nan)]),
    "inf at the target": ({}, [spoilt(2, math.inf)]),
    "nan in one of two": ({}, [start(), spoilt(2, math.nan)]),
}


@pytest.mark.parametrize(("changes", "starts"), DIVERGING.values(), ids=DIVERGING)
def test_divergence_names_the_settings_and_spares_the_state(changes: dict[str, Any], starts: list[Start]) -> None:
    chosen = settings(lr_img=123.0, lr_lr=4.5e-4, syn_steps=6, **changes)
    state, _ = iterate(first_state(settings()), [start()], settings(), seeded(1))
    state = replace(state, syn_lr=torch.tensor(chosen.lr_init, dtype=torch.float64))
    kept = copied(state)
    with pytest.raises(DivergenceError) as error:
        iterate(state, starts, chosen, seeded(0))
    assert equal(state, kept)
    sentence = str(error.value)
    for part in ("nan", "lr_img (123)", "lr_lr (0.00045)", f"lr_init ({chosen.lr_init:g})", "syn_steps (6)"):
        assert part in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["terms", "images", "syn_lr"])
def test_each_quantity_is_watched(place: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = MatchingGradient(torch.ones(1), torch.ones(S, 2, 8, 8), torch.ones(()), None)
    getattr(found, place).view(-1)[-1] = value
    monkeypatch.setattr(inner_loop, "matching_gradient", lambda *_, **__: found)
    with pytest.raises(DivergenceError, match=str(value)):
        iterate(first_state(settings()), [start()], settings(), seeded(0))


def taught() -> Start:
    """Two epochs of a student on other images than the synthetic ones, so that images exist that match it exactly."""
    thetas = [flatten(small_network(seed=9)).float()]
    for _ in range(2):
        thetas.append(student(thetas[-1], normal(S, 2, 8, 8, seed=8).float(), 0.1, 5))
    return Start(torch.stack(thetas), 0)


def distil(seed: int, iterations: int, **changes: Any) -> tuple[State, list[float]]:
    chosen = settings(syn_steps=10, lr_img=20.0, lr_lr=1e-4, **changes)
    state = distillation.start(normal(S, 2, 8, 8, seed=2).float(), chosen)
    losses = []
    for iteration in range(iterations):
        state, figures = iterate(state, [taught()], chosen, seeded(100 * seed + iteration))
        losses.append(figures.matching_loss)
    return state, losses


@pytest.mark.parametrize("changes", [{}, {"intermediate_loss": "sum", "batch_syn": 5}], ids=["end", "way points"])
def test_matching_loss_falls(changes: dict[str, Any]) -> None:
    _, losses = distil(0, 30, **changes)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_same_seed_same_bytes() -> None:
    (first, losses), (again, same), (other, _) = (distil(seed, 4, **PARTS) for seed in (0, 0, 1))
    assert equal(first, again)
    assert losses == same
    assert not equal(first, other)
