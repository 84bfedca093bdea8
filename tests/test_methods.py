"""Methods beside MTT and AST, iteration by iteration, against their restatement by autograd and torch.optim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from src.ground.errors import DataError
from src.loops import initial
from src.maths import distillation, inner_loop
from src.maths.derivatives import Derivatives
from src.maths.distillation import Figures, Real, Start, State
from src.maths.initialisation import classified_indices
from src.maths.inner_loop import InnerRule, InnerStep
from src.maths.inner_updates import Moments
from src.maths.networks import FlatNetwork, flatten
from src.maths.targets.base import Target
from src.maths.targets.nearest import Nearest
from src.maths.targets.real import RealLoss
from src.maths.targets.snapshots import WayPoint
from src.settings.distillation import Distillation
from tests.reference import small_network, unrolled
from tests.test_distillation import CPU, DERIVATIVES, LABELS, NETWORK, K, S, normal, seeded, start, tensors

PLAIN: dict[str, Any] = {
    "initialisation": "noise",
    "iterations": 1,
    "syn_steps": 4,
    "lr_img": 10.0,
    "lr_lr": 1e-3,
    "lr_init": 0.05,
}
HOT = torch.nn.functional.one_hot(LABELS, K).double()


def settings(**changes: Any) -> Distillation:
    return Distillation(**{**PLAIN, "lr_init": 0.05, "max_start_epoch": 10, **changes})


def drawn(steps: int, chosen: Distillation, generator: torch.Generator) -> list[InnerStep]:
    found = inner_loop.draw_steps(S, steps, chosen.batch_syn or S, chosen.augmentation, generator)
    return [InnerStep(step.index, step.draw.to(CPU, torch.float64)) for step in found]


def begun(chosen: Distillation, logits: Tensor | None = None) -> State:
    return distillation.start(normal(S, 2, 8, 8, seed=2), chosen, logits)


def iterated(
    chosen: Distillation, count: int, logits: Tensor | None = None, real: Real | None = None
) -> tuple[list[State], list[Figures]]:
    """The states from the first on, and what the iterations measured, against one start each."""
    states, figures = [begun(chosen, logits)], []
    for number in range(count):
        starts = [start(seed=number)] if chosen.matches else []
        own = (NETWORK, DERIVATIVES) if starts else (SMOOTH, OF_SMOOTH)
        given = (*own, states[-1], LABELS, starts, chosen, seeded(number), number, real)
        state, found = distillation.iterate(*given)
        states.append(state)
        figures.append(found)
    return states, figures


def close(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def end_of(one: Start) -> list[Target]:
    apart = (one.snapshots[0] - one.snapshots[-1]).square().sum()
    return [WayPoint(4, one.snapshots[-1], 1.0, apart)]


def test_without_any_part_it_is_mtt() -> None:
    """Each iteration by autograd through the unrolled loop, and torch's SGD."""
    chosen = settings(augmentation=("color", "crop"), batch_syn=4)
    states, figures = iterated(chosen, 5)
    images, rate = torch.nn.Parameter(states[0].images.clone()), torch.nn.Parameter(states[0].syn_lr.clone())
    groups = [{"params": [images], "lr": 10.0}, {"params": [rate], "lr": 1e-3}]
    optimiser = torch.optim.SGD(groups, momentum=0.5)
    for number, (state, measured) in enumerate(zip(states[1:], figures, strict=True)):
        one = start(seed=number)
        steps, rule = drawn(4, chosen, seeded(number)), InnerRule(0.0, 0.0, 1.0)
        found = unrolled(NETWORK, images.data, LABELS, rate.data, one.snapshots[0], steps, end_of(one), rule)
        images.grad, rate.grad = found.images, found.syn_lr
        optimiser.step()
        close(state.images, images.data)
        close(state.syn_lr, rate.data)
        assert measured.matching_loss == pytest.approx(found.terms.sum().item(), rel=1e-10)
        assert set(tensors(state)) == {"images", "syn_lr", "images_velocity", "syn_lr_velocity"}


def test_att_matches_the_nearest_step() -> None:
    chosen = settings(target="nearest", syn_steps=9, lr_init=0.4)
    (first, second), (figures,) = iterated(chosen, 1)
    one = start(seed=0)
    apart = (one.snapshots[0] - one.snapshots[-1]).square().sum()
    goal: list[Target] = [Nearest(one.snapshots[-1], apart, "l2")]
    rule = InnerRule(0.0, 0.0, 1.0)
    found = unrolled(NETWORK, first.images, LABELS, first.syn_lr, one.snapshots[0], drawn(9, chosen, seeded(0)), goal, rule)
    assert figures.steps == found.steps
    assert figures.terms == pytest.approx(found.terms.tolist(), rel=1e-10)
    close(second.images, first.images - 10 * found.images)


def test_a_student_that_goes_astray_after_the_nearest_step() -> None:
    thetas = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [float("nan"), float("inf")]], dtype=torch.float64)
    target = torch.ones(2, dtype=torch.float64)
    for by in ("l1", "l2"):
        found = Nearest(target, target.sum(), by).reached(thetas)  # type: ignore[arg-type]
        assert (found.step, found.value.item()) == (1, 0)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_learned_labels_follow_the_gradient_of_their_logits(optimiser: str) -> None:
    momentum = 0.9 if optimiser == "sgd" else 0.0
    chosen = settings(labels="learned", lr_label=2.0, label_momentum=momentum, outer_optimiser=optimiser, lr_img=0.1)
    start_logits = normal(S, K, seed=4) + 2 * HOT
    states, _ = iterated(chosen, 4, logits=start_logits)
    z, images, rate = (torch.nn.Parameter(one.clone()) for one in (start_logits, states[0].images, states[0].syn_lr))
    groups = [{"params": [z], "lr": 2.0}, {"params": [images], "lr": 0.1}, {"params": [rate], "lr": 1e-3}]
    made: torch.optim.Optimizer = torch.optim.Adam(groups)
    if optimiser == "sgd":
        made = torch.optim.SGD([group | {"momentum": 0.9 if group["lr"] == 2 else 0.5} for group in groups])
    for number, state in enumerate(states[1:]):
        one = start(seed=number)
        steps, rule = drawn(4, chosen, seeded(number)), InnerRule(0.0, 0.0, 1.0)
        probabilities = z.softmax(1)
        found = unrolled(NETWORK, images.data, probabilities, rate.data, one.snapshots[0], steps, end_of(one), rule)
        assert found.labels is not None
        made.zero_grad()
        probabilities.backward(found.labels)
        images.grad, rate.grad = found.images, found.syn_lr
        made.step()
        close(state.logits, z.data)
        close(state.images, images.data)
        close(state.syn_lr, rate.data)
        close(state.labels, z.data.softmax(1))
    assert (states[-1].logits - start_logits).norm() > 0.01


def test_teslas_labels_are_the_target_experts() -> None:
    chosen = settings(labels="expert")
    states, _ = iterated(chosen, 2)
    for number in (0, 1):
        one, before, after = start(seed=number), states[number], states[number + 1]
        labels = NETWORK(one.snapshots[-1], before.images).softmax(1)
        steps, rule = drawn(4, chosen, seeded(number)), InnerRule(0.0, 0.0, 1.0)
        found = unrolled(NETWORK, before.images, labels, before.syn_lr, one.snapshots[0], steps, end_of(one), rule)
        close(after.images_velocity, 0.5 * before.images_velocity + found.images)
        close(after.scored[1], labels)
    assert (states[2].scored[1] - states[1].scored[1]).norm() > 1e-3, "each iteration makes them anew"


@pytest.mark.parametrize("labels", ["fixed", "learned"])
def test_the_running_mean_follows_its_recursion(labels: str) -> None:
    changes = {"lr_label": 2.0} if labels == "learned" else {}
    logits = normal(S, K, seed=4) if labels == "learned" else None
    states, _ = iterated(settings(ema=0.9, labels=labels, **changes), 6, logits=logits)
    plain, _ = iterated(settings(labels=labels, **changes), 6, logits=logits)
    images, soft = plain[0].images, plain[0].labels
    for state, other in zip(states[1:], plain[1:], strict=True):
        assert torch.equal(state.images, other.images), "it has no say in where images go"
        images = 0.9 * images + 0.1 * other.images
        close(state.scored[0], images)
        if soft is not None and other.labels is not None:
            soft = 0.9 * soft + 0.1 * other.labels
            close(state.scored[1], soft)
    assert (states[-1].scored[0] - states[-1].images).norm() > 0.01


def test_the_window_of_start_epochs_grows() -> None:
    chosen = settings(min_start_epoch=2, max_start_epoch=30, start_growth={"max_start_epoch": 10, "iterations": 100})
    bounds = [distillation.start_bound(iteration, chosen) for iteration in range(150)]
    assert bounds[0] == 10 and bounds[50] == 20 and bounds[99] == 29 and bounds[100:] == [30] * 50
    assert bounds == sorted(bounds)
    generator = seeded(0)
    early, late = ({distillation.draw_start(1, chosen, generator, it)[1] for _ in range(900)} for it in (0, 100))
    assert early == set(range(2, 10))
    assert late == set(range(2, 30))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_shallow_layers_may_be_left_out(share: float) -> None:
    chosen = settings(unmatched_depth=share)
    (first, second), _ = iterated(chosen, 1)
    one = start(seed=0)
    skipped = sum(p.numel() for p in list(small_network().parameters())[: math.floor(share * len(NETWORK.sizes))])
    apart = (one.snapshots[0] - one.snapshots[-1])[skipped:].square().sum()
    goal: list[Target] = [WayPoint(4, one.snapshots[-1], 1.0, apart, skipped)]
    rule = InnerRule(0.0, 0.0, 1.0)
    found = unrolled(NETWORK, first.images, LABELS, first.syn_lr, one.snapshots[0], drawn(4, chosen, seeded(0)), goal, rule)
    close(second.images_velocity, found.images)
    assert (skipped > 0) == (share > 0)


# without parameters whose gradient is 0 but for rounding, on which Adam depends all the same
SMOOTH = FlatNetwork(small_network(norm="none", activation="sigmoid"))
OF_SMOOTH = Derivatives(SMOOTH)


def fresh(draws: torch.Generator) -> Tensor:
    return flatten(small_network(seed=int(torch.randint(99, (), generator=draws)), norm="none", activation="sigmoid"))


CLASSES = torch.arange(60) % K
REAL = Real(normal(K, 2, 8, 8, seed=20)[CLASSES] + 0.3 * normal(60, 2, 8, 8, seed=21), CLASSES, fresh)


@pytest.mark.parametrize("inner", ["sgd", "adam"])
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"students": 1, "max_skip": 5}, {"max_age": 8}, {"max_age": 1, "max_skip": 3},
        {"max_skip": 5, "max_age": 8, "lr_drop_factor": 0.1},
    ],
)  # fmt: skip
def test_students_of_the_real_objective_learn_on(inner: str, changes: dict[str, Any]) -> None:
    """The whole of it restated: who is chosen, how long ago it began, and the gradient of the last steps alone.

    Where these are at a smaller learning rate, the student goes on as if they had not been.
    """
    of: dict[str, Any] = {"images": 30, "students": 2, "weight": 0.5, **changes}
    momentum = 0.9 if inner == "sgd" else 0.0
    chosen = settings(
        objective="real", real=of, inner_optimiser=inner, inner_momentum=momentum, outer_optimiser="adam", lr_img=0.01,
        lr_init=0.02,
    )  # fmt: skip
    states, figures = iterated(chosen, 8, real=REAL)
    drop = of.get("lr_drop_factor", 1.0)
    rule = InnerRule(momentum, 0.0, 1.0, inner)  # type: ignore[arg-type]
    pool: dict[int, tuple[Tensor, Moments]] = {}
    for number, (before, after) in enumerate(pairwise(states)):
        draws = seeded(number)
        who = int(torch.randint(of["students"], (), generator=draws))
        skip = int(torch.randint(of.get("max_skip", 0) + 1, (), generator=draws))
        if who not in pool or not 0 < pool[who][1].steps < of.get("max_age", 300):
            theta = REAL.fresh(draws)
            pool[who] = theta, Moments(torch.zeros_like(theta), torch.zeros_like(theta))
        theta, moments = run(before, pool[who], drawn(skip, chosen, draws), rule)
        steps = drawn(4, chosen, draws)
        index = torch.randperm(60, generator=draws)[:30]
        goal: Sequence[Target] = [RealLoss(OF_SMOOTH, REAL.images[index], REAL.labels[index], 0.5)]
        found = unrolled(SMOOTH, before.images, LABELS, drop * before.syn_lr, theta, steps, goal, rule, moments)
        assert figures[number].terms == pytest.approx(found.terms.tolist(), rel=1e-9)
        assert figures[number].grad_norm_syn_lr == pytest.approx(drop * found.syn_lr.abs().item(), rel=1e-9)
        torch.testing.assert_close(
            after.images_velocity, 0.9 * before.images_velocity + 0.1 * found.images, rtol=1e-9, atol=1e-12
        )
        pool[who] = run(before, (theta, moments), steps, rule) if drop == 1 else (theta, moments)
        assert after.students is not None and after.students_steps is not None
        torch.testing.assert_close(after.students[who], pool[who][0], rtol=1e-9, atol=1e-12)
        assert after.students_steps[who] == pool[who][1].steps


def run(state: State, student: tuple[Tensor, Moments], steps: Sequence[InnerStep], rule: InnerRule) -> tuple[Tensor, Moments]:
    """A student some steps on, by torch's own optimisers."""
    theta, moments = student
    if not steps:
        return student
    place = torch.nn.Parameter(theta.clone())
    if rule.optimiser == "adam":
        made: torch.optim.Optimizer = torch.optim.Adam([place], lr=state.syn_lr.item())
        made.state[place] = {
            "step": torch.tensor(float(moments.steps)), "exp_avg": moments.first.clone(), "exp_avg_sq": moments.second.clone()
        }  # fmt: skip
    else:
        made = torch.optim.SGD([place], lr=state.syn_lr.item(), momentum=rule.momentum)
        made.state[place] = {"momentum_buffer": moments.first.clone()}
    for step in steps:
        place.grad = OF_SMOOTH.first(place.data, state.images[step.index], LABELS[step.index])
        made.step()
    kept = made.state[place]
    first, second = kept.get("exp_avg", kept.get("momentum_buffer")), kept.get("exp_avg_sq", moments.second)
    return place.data, Moments(first, second, moments.steps + len(steps))


@pytest.mark.parametrize("chosen", [{"students": 4}, {"max_age": 7}, {"max_skip": 3}, {"max_skip": 3, "lr_drop_factor": 0.1}])
def test_students_that_go_on_are_of_the_real_objective_alone(chosen: dict[str, float]) -> None:
    assert settings(objective="real", real=chosen).real is not None
    with pytest.raises(ValidationError, match=f"real.{', '.join(chosen)} is of objective 'real'"):
        settings(objective="both", real=chosen)


def test_a_student_at_a_dropped_learning_rate_has_to_learn_elsewhere() -> None:
    with pytest.raises(ValidationError, match=r"real.lr_drop_factor 0.1 leaves a student where it stood.* set max_skip"):
        settings(objective="real", real={"lr_drop_factor": 0.1})


def test_both_objectives_are_weighed_in_one() -> None:
    chosen = settings(objective="both", real={"images": 30, "weight": 0.5})
    (first, second), (figures,) = iterated(chosen, 1, real=REAL)
    one, draws, rule = start(seed=0), seeded(0), InnerRule(0.0, 0.0, 1.0)
    steps = drawn(4, chosen, draws)
    index = torch.randperm(60, generator=draws)[:30]
    goals = [*end_of(one), RealLoss(DERIVATIVES, REAL.images[index], REAL.labels[index], 0.5)]
    found = unrolled(NETWORK, first.images, LABELS, first.syn_lr, one.snapshots[0], steps, goals, rule)
    assert figures.terms == pytest.approx(found.terms.tolist(), rel=1e-10)
    close(second.images_velocity, found.images)
    assert second.students is None


def test_the_loss_on_real_images_falls() -> None:
    chosen = settings(
        objective="real", real={"images": 60, "students": 1, "max_age": 1}, outer_optimiser="adam", lr_img=0.1, lr_lr=0.0,
        lr_init=0.05, inner_optimiser="adam", syn_steps=15,
    )  # fmt: skip
    _, figures = iterated(chosen, 40, real=REAL)
    losses = [one.matching_loss for one in figures]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


# -- initial images and labels


def test_classified_images_are_random_among_those_that_are_right() -> None:
    labels = torch.arange(K).repeat(20)
    logits = normal(len(labels), K, seed=1) + torch.nn.functional.one_hot(labels, K)
    right = logits.argmax(1) == labels
    counts = {str(k): 20 for k in range(K)}
    fewest = min(int((right & (labels == k)).sum()) for k in range(K))
    first, other = (classified_indices(logits, labels, counts, fewest, seeded(s), "r") for s in (0, 1))
    assert right[first].all() and torch.equal(labels[first], torch.arange(K).repeat_interleave(fewest))
    assert len(set(first.tolist())) == K * fewest and not torch.equal(first, other)
    with pytest.raises(DataError, match=f"classifies {fewest} training images rightly, fewer than ipc {fewest + 1}"):
        classified_indices(logits, labels, counts, fewest + 1, seeded(0), "r")


def test_labels_start_from_the_mean_of_the_experts_that_are_right() -> None:
    images = normal(S, 2, 8, 8, seed=2)
    thetas = [flatten(small_network(seed=seed)) + 0.5 * normal(NETWORK.dimension, seed=seed) for seed in range(40)]
    expected = torch.zeros(S, K).double()
    for i in range(S):
        told = [NETWORK(theta, images)[i] for theta in thetas]
        right = [one for one in told if int(one.argmax()) == int(LABELS[i])]
        assert 0 < len(right) < len(told)
        expected[i] = torch.stack(right).mean(0)
    close(initial.logits(NETWORK, thetas, images, LABELS), expected)
    close(initial.logits(NETWORK, thetas, images, HOT), expected)
    with pytest.raises(DataError, match="are classified rightly by no expert"):
        initial.logits(NETWORK, thetas[:1], images, LABELS)


# -- settings that contradict themselves


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ema": 0.99, "iterations": 0}, "ema averages over iterations, which are 0"),
        ({"min_start_epoch": 10}, "max_start_epoch 10 must lie above min_start_epoch 10"),
        ({"start_growth": {"max_start_epoch": 11, "iterations": 5}}, "not above max_start_epoch 10"),
        ({"start_growth": {"max_start_epoch": 3, "iterations": 5}, "min_start_epoch": 3}, "must lie above min_start_epoch 3"),
        ({"lr_label": 1.0}, "these are 'fixed': set labels to learned"),
        ({"label_certainty": 0.9}, "label_certainty is of labels that are learned, and these are 'fixed'"),
        ({"labels": "expert", "objective": "real", "real": {}}, "none is matched"),
        ({"initialisation": "run"}, "initial_run go together"),
        ({"initial_run": "one"}, "initial_run go together"),
        ({"lr_init": None}, "give a number"),
        ({"lr_init": 1e-6, "lr_lr": 0.0}, "lr_init 1e-06 lies below syn_lr_min 1e-05, where no learning rate stays"),
        ({"labels": "learned", "label_momentum": 0.9, "outer_optimiser": "adam"}, "label_momentum 0.9 is of SGD"),
        ({"target": "nearest", "intermediate_loss": "sum"}, "use one of the two"),
        ({"nearest_by": "l1"}, "target 'nearest'"),
        ({"inner_optimiser": "adam", "inner_momentum": 0.9}, "inner_momentum 0.9 is of SGD"),
        ({"inner_optimiser": "adam", "gradient": "tesla"}, "students that learn by SGD"),
        ({"objective": "real"}, "set both, or none"),
        ({"real": {}}, "set both, or none"),
        ({"objective": "real", "real": {}, "balanced_loss": True, "target": "nearest"}, "which target, balanced_loss is about"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_said(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(**changes)
    assert sentence in str(caught.value)


def test_a_method_takes_the_targets_that_it_needs() -> None:
    assert settings().targets == ("snapshots",)
    assert settings(target="nearest").targets == ("nearest",)
    assert settings(objective="real", real={}).targets == ("real",)
    assert settings(objective="both", real={}, target="nearest").targets == ("nearest", "real")
    assert settings(iterations=0).targets == ()
    assert not settings(objective="real", real={}).asks_experts and settings(objective="both", real={}).asks_experts
