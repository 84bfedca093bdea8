"""The adjoint against the unrolled loop's autograd and finite differences; the forward pass against torch.optim."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from src.ground.settings import Distillation
from src.maths import augmentation, inner_loop, matching
from src.maths.inner_loop import InnerRule, InnerStep
from src.maths.matching import WayPoint
from src.maths.networks import FlatNetwork, flatten
from tests.reference import cross_entropy, small_network, unrolled

K, IPC, BATCH = 5, 2, 4
S = K * IPC
PLAIN = InnerRule(momentum=0.0, weight_decay=0.0, coefficient=1.0)
FULL = InnerRule(momentum=0.9, weight_decay=1e-2, coefficient=0.73)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(count: int, kinds: tuple[str, ...] = (), batch: int = BATCH, seed: int = 3) -> list[InnerStep]:
    steps = inner_loop.draw_steps(S, count, batch, kinds, seeded(seed))
    return [replace(step, draw=step.draw.to(torch.device("cpu"), torch.float64)) for step in steps]


def problem(steps: int, epochs: int = 3, part: str = "ramp", **spec: Any) -> dict[str, Any]:
    """Arguments of matching_gradient, without steps and rule."""
    network = small_network(**spec)
    theta = flatten(network)
    targets = theta + 0.3 * torch.randn(epochs, len(theta), generator=seeded(1)).double()
    chosen = {"syn_steps": steps, "expert_epochs": epochs, "intermediate_loss": part}
    settings = Distillation(initialisation="noise", iterations=1, **chosen)
    return {
        "network": FlatNetwork(network),
        "images": torch.randn(S, 2, 8, 8, generator=seeded(2)).double(),
        "labels": torch.arange(K).repeat_interleave(IPC),
        "syn_lr": torch.tensor(0.05, dtype=torch.float64),
        "theta_start": theta,
        "way_points": matching.way_points(theta, targets, settings),
    }


def check_against_autograd(given: dict[str, Any], steps: list[InnerStep], rule: InnerRule) -> None:
    found = inner_loop.matching_gradient(**given, steps=steps, rule=rule)
    terms, images, syn_lr = unrolled(**given, steps=steps, rule=rule)
    for ours, theirs in ((found.terms, terms), (found.images, images), (found.syn_lr, syn_lr)):
        assert theirs.abs().max() > 0
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm()


@pytest.mark.parametrize("rule", [PLAIN, replace(PLAIN, momentum=0.9), replace(PLAIN, weight_decay=0.1), FULL])
@pytest.mark.parametrize("part", ["off", "sum", "ramp"])
def test_adjoint_is_the_unrolled_gradient(rule: InnerRule, part: str) -> None:
    check_against_autograd(problem(7, part=part), drawn(7), rule)


@pytest.mark.parametrize("kind", augmentation.KINDS)
def test_adjoint_replays_each_augmentation(kind: str) -> None:
    check_against_autograd(problem(4), drawn(4, (kind,)), FULL)


def test_adjoint_with_mixed_augmentation_over_a_longer_loop() -> None:
    check_against_autograd(problem(20), drawn(20, tuple(augmentation.KINDS)), FULL)


@pytest.mark.parametrize("spec", [{"norm": "none"}, {"norm": "layer", "activation": "gelu"}, {"pooling": "max"}])
def test_adjoint_with_other_networks(spec: dict[str, str]) -> None:
    check_against_autograd(problem(4, **spec), drawn(4), FULL)


def test_adjoint_of_one_step_and_one_epoch() -> None:
    check_against_autograd(problem(1, epochs=1), drawn(1, batch=S), FULL)


def test_adjoint_with_soft_labels_equals_the_one_with_hard_ones() -> None:
    given = problem(4)
    soft = {**given, "labels": torch.nn.functional.one_hot(given["labels"], K).double()}
    hard = inner_loop.matching_gradient(**given, steps=drawn(4), rule=FULL)
    found = inner_loop.matching_gradient(**soft, steps=drawn(4), rule=FULL)
    torch.testing.assert_close(found.images, hard.images, rtol=1e-10, atol=1e-14)


def test_adjoint_is_the_finite_difference() -> None:
    given, steps = problem(6, activation="sigmoid"), drawn(6, ("color", "crop", "rotate"))
    found = inner_loop.matching_gradient(**given, steps=steps, rule=FULL)
    direction = torch.randn(found.images.shape, generator=seeded(4)).double()

    def loss(name: str, value: Tensor) -> float:
        return inner_loop.matching_gradient(**{**given, name: value}, steps=steps, rule=FULL).terms.sum().item()

    for name, along, slope in (
        ("images", direction, (found.images * direction).sum()),
        ("syn_lr", torch.tensor(1.0).double(), found.syn_lr),
    ):
        width = 1e-4
        change = loss(name, given[name] + width * along) - loss(name, given[name] - width * along)
        assert change / (2 * width) == pytest.approx(slope.item(), rel=1e-6)


@pytest.mark.parametrize("rule", [PLAIN, replace(PLAIN, momentum=0.9), FULL])
def test_every_student_step_is_torchs_sgd(rule: InnerRule) -> None:
    """torch's own thetas are taken as way points with scale 1: each term is then the squared distance to them."""
    given, steps = problem(9), drawn(9, ("color", "flip"))
    module = small_network()
    optimiser = torch.optim.SGD(
        module.parameters(), lr=given["syn_lr"].item(), momentum=rule.momentum, weight_decay=rule.weight_decay
    )
    points = []
    for n, step in enumerate(steps, start=1):
        optimiser.zero_grad()
        logits = module(augmentation.apply(step.draw, given["images"][step.index]))
        (rule.coefficient * cross_entropy(logits, given["labels"][step.index])).backward()
        optimiser.step()
        points.append(WayPoint(n, flatten(module), 1.0, torch.ones((), dtype=torch.float64)))
    found = inner_loop.matching_gradient(**{**given, "way_points": points}, steps=steps, rule=rule)
    assert (found.terms.sqrt() <= 1e-12 * points[-1].target.norm()).all()
    assert (points[-1].target - given["theta_start"]).norm() > 0.01


def test_permutations_are_cut_into_chunks_and_refilled() -> None:
    steps = drawn(7)
    assert [len(step.index) for step in steps] == [4, 4, 2, 4, 4, 2, 4]
    first, second = (torch.cat([step.index for step in steps[i : i + 3]]) for i in (0, 3))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(S))
    assert not torch.equal(first, second)
    for batch in (S, S + 5):
        assert all(sorted(step.index.tolist()) == list(range(S)) for step in drawn(3, batch=batch))


def test_drawn_steps_follow_the_generator_and_carry_a_draw_an_image() -> None:
    first, again, other = drawn(5, ("crop",)), drawn(5, ("crop",)), drawn(5, ("crop",), seed=4)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.draw.uniforms, b.draw.uniforms)
        assert len(a.draw.uniforms) == len(a.index)
    assert not all(torch.equal(a.index, b.index) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("tracked", [(), ("images",), ("theta_start",), ("syn_lr",)])
def test_result_holds_no_graph_and_arguments_stay_as_they_were(tracked: tuple[str, ...]) -> None:
    given = problem(4)
    for name in tracked:
        given[name].requires_grad_()
    kept = {name: given[name].detach().clone() for name in ("images", "syn_lr", "theta_start")}
    found = inner_loop.matching_gradient(**given, steps=drawn(4), rule=FULL)
    assert not any(field.requires_grad for field in (found.terms, found.images, found.syn_lr))
    for name, value in kept.items():
        assert torch.equal(given[name], value)
        assert given[name].grad is None


def test_the_graph_of_one_step_lives_at_a_time() -> None:
    live = peak = 0

    class Saved:
        def __init__(self, tensor: Tensor):
            nonlocal live, peak
            self.tensor = tensor
            live += 1
            peak = max(peak, live)

        def __del__(self) -> None:
            nonlocal live
            live -= 1

    def peak_of(steps: int) -> int:
        nonlocal peak
        peak = 0
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            # torch never releases the hooks of GroupNorm's double backward, hence no norm
            inner_loop.matching_gradient(**problem(steps, norm="none"), steps=drawn(steps, batch=S), rule=FULL)
        return peak

    assert 0 < peak_of(12) == peak_of(3)
    assert live == 0
