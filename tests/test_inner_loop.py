"""The adjoint against the unrolled loop's autograd and finite differences; the forward pass against torch.optim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from src.maths import augmentation, inner_loop
from src.maths.derivatives import Derivatives
from src.maths.inner_loop import InnerRule, InnerStep, MatchingGradient, Student
from src.maths.inner_updates import rest
from src.maths.networks import FlatNetwork, flatten
from src.maths.targets.nearest import Nearest
from src.maths.targets.real import RealLoss
from src.maths.targets.snapshots import WayPoint, way_points
from src.settings.distillation import Distillation
from tests.reference import cross_entropy, resnet18, small_network, unrolled, vgg11

K, IPC, BATCH = 5, 2, 4
S = K * IPC
PLAIN = InnerRule(momentum=0.0, weight_decay=0.0, coefficient=1.0)
FULL = InnerRule(momentum=0.9, weight_decay=1e-2, coefficient=0.73)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(count: int, kinds: tuple[str, ...] = (), batch: int = BATCH, seed: int = 3) -> list[InnerStep]:
    steps = inner_loop.draw_steps(S, count, batch, kinds, seeded(seed))
    return [replace(step, draw=step.draw.to(torch.device("cpu"), torch.float64)) for step in steps]


def soft_labels() -> Tensor:
    """Probabilities (S, K), no two rows alike."""
    return torch.randn(S, K, generator=seeded(5)).double().softmax(1)


def problem(
    steps: int, epochs: int = 3, part: str = "ramp", module: nn.Module | None = None, size: int = 8, **spec: Any
) -> dict[str, Any]:
    """Arguments of `unrolled` without steps and rule; of `adjoint` too."""
    module = module or small_network(**spec)
    theta = flatten(module)
    targets = theta + 0.3 * torch.randn(epochs, len(theta), generator=seeded(1)).double()
    chosen = {"syn_steps": steps, "expert_epochs": epochs, "intermediate_loss": part}
    settings = Distillation(initialisation="noise", iterations=1, **chosen)
    return {
        "network": FlatNetwork(module),
        "images": torch.randn(S, 2, size, size, generator=seeded(2)).double(),
        "labels": torch.arange(K).repeat_interleave(IPC),
        "syn_lr": torch.tensor(0.05, dtype=torch.float64),
        "theta_start": theta,
        "targets": way_points(theta, targets, settings),
    }


def adjoint(network: FlatNetwork, **given: Any) -> MatchingGradient:
    return inner_loop.matching_gradient(Derivatives(network), **given)


def check_against_autograd(given: dict[str, Any], steps: list[InnerStep], rule: InnerRule) -> None:
    """With hard labels and with soft ones."""
    for labels in (given["labels"], soft_labels()):
        found, expected = (f(**{**given, "labels": labels}, steps=steps, rule=rule) for f in (adjoint, unrolled))
        assert (found.labels is not None) == labels.is_floating_point()
        for name in ("terms", "images", "syn_lr", *["labels"] * labels.is_floating_point()):
            ours, theirs = getattr(found, name), getattr(expected, name)
            assert ours.shape == theirs.shape
            assert theirs.abs().max() > 0
            assert (ours - theirs).norm() <= 1e-10 * theirs.norm(), name


@pytest.mark.parametrize("rule", [PLAIN, replace(PLAIN, momentum=0.9), replace(PLAIN, weight_decay=0.1), FULL])
@pytest.mark.parametrize("part", ["off", "sum", "ramp"])
def test_adjoint_is_the_unrolled_gradient(rule: InnerRule, part: str) -> None:
    check_against_autograd(problem(7, part=part), drawn(7), rule)


@pytest.mark.parametrize("kind", augmentation.KINDS)
def test_adjoint_replays_each_augmentation(kind: str) -> None:
    check_against_autograd(problem(4), drawn(4, (kind,)), FULL)


def test_adjoint_with_mixed_augmentation_over_a_longer_loop() -> None:
    check_against_autograd(problem(20), drawn(20, tuple(augmentation.KINDS)), FULL)


OTHERS = [
    {"norm": "none"},
    {"norm": "group"},
    {"norm": "layer", "activation": "gelu"},
    {"activation": "leaky_relu", "pooling": "none"},
    {"pooling": "max"},
]


@pytest.mark.parametrize("spec", OTHERS)
def test_adjoint_with_other_networks(spec: dict[str, str]) -> None:
    check_against_autograd(problem(4, **spec), drawn(4), FULL)


@pytest.mark.parametrize(("family", "size", "inplace"), [(vgg11, 32, False), (resnet18, 16, True)])
def test_adjoint_with_deeper_networks(family: Callable[[], nn.Module], size: int, inplace: bool) -> None:
    """torchvision's ReLUs work in place, which neither way of differentiating may be upset by."""
    module = family()
    assert any(isinstance(layer, nn.ReLU) and layer.inplace for layer in module.modules()) == inplace
    kinds = ("color", "crop", "scale", "flip")
    check_against_autograd(problem(4, module=module, size=size), drawn(4, kinds), FULL)


ADAM = InnerRule(momentum=0.0, weight_decay=1e-2, coefficient=0.73, optimiser="adam")


def smooth(steps: int, **changes: Any) -> dict[str, Any]:
    """A problem without parameters whose gradient is 0, where Adam's square root has no slope."""
    return {**problem(steps, activation="sigmoid", norm="none", **changes), "syn_lr": torch.tensor(0.003, dtype=torch.float64)}


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("rule", [ADAM, replace(ADAM, weight_decay=0.0, coefficient=1.0)])
def test_adjoint_of_adam(rule: InnerRule, steps: int) -> None:
    check_against_autograd(smooth(steps, epochs=min(steps, 3)), drawn(steps, ("color", "crop")), rule)


@pytest.mark.parametrize("rule", [replace(FULL, weight_decay=0.0), ADAM])
def test_the_loop_goes_on_from_moments(rule: InnerRule) -> None:
    """Two loops, the second from where the first ended, are one longer loop; and it differentiates as autograd does."""
    given, steps = smooth(6), drawn(6)
    whole = adjoint(**given, steps=steps, rule=rule)
    first = inner_loop.advanced(
        Derivatives(given["network"]), given["images"], given["labels"], given["syn_lr"],
        Student(given["theta_start"], rest(given["theta_start"])), steps[:3], rule,
    )  # fmt: skip
    end = replace(given["targets"][-1], step=3)
    later = {**given, "theta_start": first.theta, "targets": [end], "moments": first.moments}
    second = adjoint(**later, steps=steps[3:], rule=rule)
    assert second.ended is not None and whole.ended is not None
    assert second.ended.moments.steps == whole.ended.moments.steps == 6
    torch.testing.assert_close(second.ended.theta, whole.ended.theta, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(second.ended.moments.first, whole.ended.moments.first, rtol=1e-10, atol=1e-14)
    check_against_autograd(later, steps[3:], rule)


def test_a_parameter_without_gradient_has_no_part_in_adams_adjoint() -> None:
    """Neurons that no image wakes: their gradient is 0 at all steps, and its square root's slope is infinite."""
    given = smooth(4)
    module = small_network(norm="none")
    with torch.no_grad():
        list(module.parameters())[1][0] = -1e3  # of one channel the bias
    given |= {"network": FlatNetwork(module), "theta_start": flatten(module)}
    found = adjoint(**given, steps=drawn(4), rule=replace(ADAM, weight_decay=0.0))
    assert found.images.isfinite().all() and found.syn_lr.isfinite()


@pytest.mark.parametrize("by", ["l2", "l1"])
@pytest.mark.parametrize("rule", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("ahead", [0.4, 1.0, 3.0])
def test_the_nearest_step_is_matched(by: Literal["l1", "l2"], rule: InnerRule, ahead: float) -> None:
    """The target lies beside where the student passes, its end, or farther."""
    given, steps = problem(9, epochs=1), drawn(9, ("color", "flip"))
    ended = adjoint(**given, steps=steps, rule=rule).ended
    assert ended is not None
    moved = ended.theta - given["theta_start"]
    beside = torch.randn(len(moved), generator=seeded(7)).double()
    target = given["theta_start"] + ahead * moved + 0.1 * moved.norm() * beside / beside.norm()
    given["targets"] = [Nearest(target, (given["theta_start"] - target).square().sum(), by)]
    found, expected = (f(**given, steps=steps, rule=rule) for f in (adjoint, unrolled))
    assert found.steps == expected.steps
    assert (found.steps == (9,)) == (ahead >= 1)
    check_against_autograd(given, steps, rule)


def test_of_steps_as_near_the_later_is_matched() -> None:
    thetas = torch.tensor([[0.0], [1.0], [3.0], [1.0], [4.0]], dtype=torch.float64)
    for by in ("l1", "l2"):
        assert Nearest(torch.tensor([2.0], dtype=torch.float64), torch.ones(()), by).reached(thetas).step == 3
        assert Nearest(torch.tensor([0.0], dtype=torch.float64), torch.ones(()), by).reached(thetas).step == 3  # not 0


def test_nothing_is_differentiated_after_the_step_that_is_matched() -> None:
    given, steps = problem(9, epochs=1), drawn(9)
    derivatives, seen = Derivatives(given["network"]), []
    second = derivatives.second
    derivatives.second = lambda *args: seen.append(1) or second(*args)  # type: ignore[func-returns-value]
    found = inner_loop.matching_gradient(
        derivatives, given["images"], given["labels"], given["syn_lr"], given["theta_start"], steps,
        [Nearest(given["theta_start"] + 1e-4, torch.ones(()), "l2")], FULL,
    )  # fmt: skip
    assert len(seen) == found.steps[0] < 9


def real_loss(given: dict[str, Any], count: int = 300) -> RealLoss:
    """More images than are differentiated at once."""
    images, labels = torch.randn(count, 2, 8, 8, generator=seeded(6)).double(), torch.arange(count) % K
    return RealLoss(Derivatives(given["network"]), images, labels, 0.7)


@pytest.mark.parametrize("rule", [FULL, ADAM], ids=["sgd", "adam"])
def test_adjoint_of_the_loss_on_real_images(rule: InnerRule) -> None:
    given = smooth(5)
    given["targets"] = [real_loss(given)]
    check_against_autograd(given, drawn(5, ("color",)), rule)
    assert adjoint(**given, steps=drawn(5), rule=rule).steps == (5,)


def test_adjoint_of_matching_and_real_images_in_one() -> None:
    given = problem(6)
    given["targets"] = [*given["targets"], real_loss(given)]
    check_against_autograd(given, drawn(6), FULL)
    assert len(adjoint(**given, steps=drawn(6), rule=FULL).terms) == 4


@pytest.mark.parametrize("first", [1, 150])
def test_adjoint_without_the_first_parameters(first: int) -> None:
    given = problem(5)
    given["targets"] = [
        replace(one, first=first, scale=(given["theta_start"] - one.target)[first:].square().sum()) for one in given["targets"]
    ]
    check_against_autograd(given, drawn(5), FULL)


@pytest.mark.parametrize("rule", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("part", ["off", "ramp"])
def test_teslas_gradient_takes_each_theta_for_given(rule: InnerRule, part: str) -> None:
    given, steps = problem(6, part=part), drawn(6, ("color", "crop"))
    found, expected = (f(**given, steps=steps, rule=replace(rule, weight_decay=0.0), exact=False) for f in (adjoint, unrolled))
    for name in ("terms", "images", "syn_lr"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm(), name
    exact = adjoint(**given, steps=steps, rule=rule)
    assert (found.images - exact.images).norm() > 1e-3 * exact.images.norm()


def test_adjoint_of_one_step_and_one_epoch() -> None:
    check_against_autograd(problem(1, epochs=1), drawn(1, batch=S), FULL)


def test_adjoint_with_soft_labels_equals_the_one_with_hard_ones() -> None:
    given = problem(4)
    soft = {**given, "labels": torch.nn.functional.one_hot(given["labels"], K).double()}
    hard = adjoint(**given, steps=drawn(4), rule=FULL)
    found = adjoint(**soft, steps=drawn(4), rule=FULL)
    torch.testing.assert_close(found.terms, hard.terms, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.images, hard.images, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.syn_lr, hard.syn_lr, rtol=1e-10, atol=0)
    assert hard.labels is None
    assert found.labels is not None


def test_images_that_no_step_took_have_no_gradient() -> None:
    given, steps = {**problem(2), "labels": soft_labels()}, drawn(2)
    found = adjoint(**given, steps=steps, rule=FULL)
    taken = torch.zeros(S, dtype=torch.bool)
    taken[torch.cat([step.index for step in steps])] = True
    assert taken.sum() == 2 * BATCH
    for gradient in (found.images.flatten(1), found.labels):
        assert torch.equal(gradient.abs().sum(1) > 0, taken)


def test_adjoint_is_the_finite_difference() -> None:
    given, steps = {**problem(6, activation="sigmoid"), "labels": soft_labels()}, drawn(6, ("color", "crop", "rotate"))
    found = adjoint(**given, steps=steps, rule=FULL)

    def loss(name: str, value: Tensor) -> float:
        return adjoint(**{**given, name: value}, steps=steps, rule=FULL).terms.sum().item()

    for name in ("images", "syn_lr", "labels"):
        along = torch.randn(given[name].shape, generator=seeded(4)).double()
        slope = (getattr(found, name) * along).sum().item()
        width = 1e-4
        change = loss(name, given[name] + width * along) - loss(name, given[name] - width * along)
        assert change / (2 * width) == pytest.approx(slope, rel=1e-6)


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
    found = adjoint(**{**given, "targets": points}, steps=steps, rule=rule)
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


@pytest.mark.parametrize("tracked", [(), ("images",), ("theta_start",), ("syn_lr",), ("labels",)])
def test_result_holds_no_graph_and_arguments_stay_as_they_were(tracked: tuple[str, ...]) -> None:
    given = {**problem(4), "labels": soft_labels()}
    for name in tracked:
        given[name].requires_grad_()
    kept = {name: given[name].detach().clone() for name in ("images", "labels", "syn_lr", "theta_start")}
    found = adjoint(**given, steps=drawn(4), rule=FULL)
    assert not any(getattr(found, name).requires_grad for name in ("terms", "images", "labels", "syn_lr"))
    for name, value in kept.items():
        assert torch.equal(given[name], value)
        assert given[name].grad is None
        assert given[name].requires_grad == (name in tracked)


class Ledger:
    """Counts the tensors, and their bytes, that graphs keep alive."""

    def __init__(self) -> None:
        self.live = [0, 0]
        self.peak = [0, 0]

    def change(self, tensor: Tensor, sign: int) -> None:
        change = (sign, sign * tensor.nbytes)
        self.live = [a + b for a, b in zip(self.live, change, strict=True)]
        self.peak = [max(a, b) for a, b in zip(self.peak, self.live, strict=True)]


class Saved:
    def __init__(self, tensor: Tensor, ledger: Ledger):
        self.tensor, self.ledger = tensor, ledger
        ledger.change(tensor, 1)

    def __del__(self) -> None:
        self.ledger.change(self.tensor, -1)


def ledger_of(run: Callable[..., MatchingGradient], steps: int, labels: Tensor | None, rule: InnerRule) -> Ledger:
    # torch never releases the hooks of GroupNorm's double backward, hence no norm
    given, drawn_steps = problem(steps, norm="none"), drawn(steps, ("rotate",), batch=S)
    given["labels"] = given["labels"] if labels is None else labels
    ledger = Ledger()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: Saved(tensor, ledger), lambda saved: saved.tensor):
        run(**given, steps=drawn_steps, rule=rule)
    return ledger


@pytest.mark.parametrize("rule", [FULL, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("labels", [None, soft_labels()], ids=["hard", "soft"])
def test_the_graph_of_one_step_lives_at_a_time(labels: Tensor | None, rule: InnerRule) -> None:
    short, long = (ledger_of(adjoint, steps, labels, rule) for steps in (3, 30))
    assert short.peak[0] > 0
    assert short.peak == long.peak
    assert short.live == long.live == [0, 0]
    kept = ledger_of(unrolled, 3, labels, rule)  # it is the graphs that are counted: those of three steps are larger
    assert all(ours < 0.5 * theirs for ours, theirs in zip(long.peak, kept.peak, strict=True))
