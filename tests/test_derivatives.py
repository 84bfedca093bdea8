"""First and second derivatives against autograd, forward mode and finite differences; compiled and in half precision."""

from __future__ import annotations

import functools
import os
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.func import grad, jvp

from src.maths import by_hand, derivatives, kernels, networks
from src.maths.by_hand import ByHand
from src.maths.derivatives import Derivatives
from src.maths.kernels import Between
from src.maths.networks import FlatNetwork, ImageShape, flatten
from src.maths.smoothness import penalised
from src.settings.experts import PenaltyOf
from src.settings.networks import MLP, ConvNet, LeNet, Network, ResNet18
from src.settings.runtime import Runtime
from tests.reference import cross_entropy, needs_kernels, small_network

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, in forward mode and inductor
K, B = 5, 6


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def hard_labels() -> Tensor:
    return torch.arange(B) % K


def soft_labels() -> Tensor:
    return normal(B, K, seed=1).softmax(1)


def problem(**spec: Any) -> tuple[FlatNetwork, Tensor, Tensor, Tensor]:
    """Network, theta (P,), batch (B, 2, 8, 8) and a direction a (P,)."""
    module = small_network(**spec)
    theta = flatten(module)
    return FlatNetwork(module), theta, normal(B, 2, 8, 8, seed=2), normal(len(theta), seed=3)


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


labelled = pytest.mark.parametrize("labels", [hard_labels(), soft_labels()], ids=["hard", "soft"])
SPECS = [{}, {"norm": "layer", "activation": "gelu"}, {"norm": "none", "activation": "sigmoid"}, {"norm": "group"}]


@labelled
@pytest.mark.parametrize("spec", SPECS)
def test_first_is_the_modules_own_gradient(spec: dict[str, str], labels: Tensor) -> None:
    module = small_network(**spec)
    network, theta, batch, _ = problem(**spec)
    cross_entropy(module(batch), labels).backward()
    expected = torch.cat([parameter.grad.reshape(-1) for parameter in module.parameters()])
    ours = Derivatives(network)
    assert error(ours.first(theta, batch, labels), expected) < 1e-13
    assert ours.loss(theta, batch, labels).item() == pytest.approx(cross_entropy(module(batch), labels).item())


@labelled
@pytest.mark.parametrize("spec", SPECS)
def test_second_is_the_gradient_of_the_forward_mode_slope(spec: dict[str, str], labels: Tensor) -> None:
    """<first, a> is the loss's slope along a, which forward mode finds without a first derivative."""
    network, theta, batch, a = problem(**spec)

    def slope(theta: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        return jvp(lambda moved: cross_entropy(network(moved, batch), labels), (theta,), (a,))[1]

    expected = grad(slope, argnums=(0, 1, 2) if labels.is_floating_point() else (0, 1))(theta, batch, labels)
    found = Derivatives(network).second(theta, batch, labels, a)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.norm() > 0
        assert error(ours, theirs) < 1e-11


def test_derivatives_are_finite_differences() -> None:
    network, theta, batch, a = problem(activation="sigmoid")
    given = [theta, batch, soft_labels()]
    found_by, width = Derivatives(network), 1e-5

    def change(function: Any, position: int, along: Tensor) -> float:
        up, down = ([x + s * along if i == position else x for i, x in enumerate(given)] for s in (width, -width))
        return ((function(*up) - function(*down)) / (2 * width)).item()

    slope = found_by.first(*given).dot(a).item()
    assert change(found_by.loss, 0, a) == pytest.approx(slope, rel=1e-6)
    for position, found in enumerate(found_by.second(*given, a)):
        along = normal(*given[position].shape, seed=4)
        expected = change(lambda *moved: found_by.first(*moved).dot(a), position, along)
        assert (found * along).sum().item() == pytest.approx(expected, rel=1e-6)


@labelled
def test_results_hold_no_graph_and_arguments_stay_as_they_were(labels: Tensor) -> None:
    network, theta, batch, a = problem()
    given = [theta, batch, labels]
    kept = [x.clone() for x in given]
    theta.requires_grad_()
    ours = Derivatives(network)
    results = [ours.first(*given), *ours.second(*given, a)]
    assert not any(result.requires_grad for result in results)
    assert all(torch.equal(x, y) for x, y in zip(given, kept, strict=True))
    assert [x.requires_grad for x in given] == [True, False, False]
    assert theta.grad is None


@pytest.mark.parametrize(
    ("depth", "width", "size", "pooling"), [(2, 8, 8, "avg"), (3, 16, 32, "max"), (1, 4, 8, "none"), (3, 8, 28, "avg")]
)
def test_forward_flops_are_two_for_each_multiplication(depth: int, width: int, size: int, pooling: str) -> None:
    spec = ConvNet(depth=depth, width=width, pooling=pooling)
    module = networks.build(spec, ImageShape(3, size, 7), torch.Generator().manual_seed(0))
    side = 32 if size == 28 else size
    macs, channels = 0, 3
    for _ in range(depth):
        macs += width * channels * 9 * side**2
        channels, side = width, side if pooling == "none" else side // 2
    macs += width * side**2 * 7
    for images in (1, 5):
        counted = FlatNetwork(module).forward_flops(torch.zeros(images, 3, size, size))
        assert counted == 2 * macs * images


def float32_problem(**spec: Any) -> tuple[FlatNetwork, list[Tensor], Tensor]:
    """Network, (theta, batch, soft labels) and a direction, D2 W8 on 8x8."""
    network, theta, batch, a = problem(width=8, **spec)
    return network, [x.float() for x in (theta, batch, soft_labels())], a.float()


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
def test_compiled_is_eager() -> None:
    """The one slow test, unless torch's own cache still has its kernels."""
    torch._dynamo.reset()
    counters.clear()
    network, given, a = float32_problem()
    eager, compiled = Derivatives(network), Derivatives(network, backend="compiled")
    pairs = [(compiled.first(*given), eager.first(*given))]
    pairs += zip(compiled.second(*given, a), eager.second(*given, a), strict=True)
    for ours, theirs in pairs:
        assert ours.dtype == torch.float32
        assert not ours.requires_grad
        assert error(ours, theirs) < 1e-3
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize(("activation", "bound"), [("gelu", 5e-2), ("sigmoid", 5e-2), ("relu", 0.2)])
def test_bfloat16_is_near_float32_and_returns_float32(activation: str, bound: float) -> None:
    """Half precision moves inputs of ReLU across its kink, which costs derivatives more than the rounding itself."""
    network, given, a = float32_problem(activation=activation)
    plain, half = Derivatives(network), Derivatives(network, bfloat16=True)
    pairs = [(half.first(*given), plain.first(*given))]
    pairs += zip(half.second(*given, a), plain.second(*given, a), strict=True)
    for ours, theirs in pairs:
        assert ours.dtype == torch.float32
        assert 1e-4 < error(ours, theirs) < bound  # the lower bound: half precision did run
    for labels in (given[2], hard_labels()):
        loss = half.loss(*given[:2], labels)
        assert loss.dtype == torch.float32
        assert error(loss, plain.loss(*given[:2], labels)) < 1e-2


def test_any_function_of_theta_and_images_will_do() -> None:
    """Softmax regression, whose derivatives are known: the gradient is (p - y) x^T / B."""
    flat = nn.Flatten()
    x, y, theta = normal(B, 1, 2, 2, seed=6), soft_labels(), normal(K * 4, seed=7)
    first = Derivatives(lambda theta, images: flat(images) @ theta.view(K, 4).T).first(theta, x, y)
    p = (flat(x) @ theta.view(K, 4).T).softmax(1)
    torch.testing.assert_close(first.view(K, 4), (p - y).T @ flat(x) / B, rtol=1e-12, atol=1e-14)


# -- own kernels


def by_hand_problem(size: int, soft: bool, channels: int = 3, **spec: Any) -> tuple[FlatNetwork, list[Tensor]]:
    """A ConvNet of two blocks off its initialisation, with 5 images and 4 classes, in float64."""
    draws = torch.Generator().manual_seed(1)
    module = networks.build(ConvNet(**{"depth": 2, "width": 8, **spec}), ImageShape(channels, size, 4), draws)
    theta = flatten(module).double()
    theta = theta + 0.1 * torch.randn(theta.shape, generator=draws, dtype=torch.float64)
    batch = torch.randn(5, channels, size, size, generator=draws, dtype=torch.float64)
    labels = torch.rand(5, 4, generator=draws, dtype=torch.float64) if soft else torch.tensor([0, 3, 1, 1, 2])
    a = torch.randn(theta.shape, generator=draws, dtype=torch.float64)
    return FlatNetwork(module), [theta, batch, labels, a]


NORMS = ["instance", "layer", "group", "none"]


@needs_kernels
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("pooling", ["avg", "none"])
@pytest.mark.parametrize("norm", NORMS)
def test_kernels_are_autograd(norm: str, pooling: str, soft: bool) -> None:
    check_kernels(*by_hand_problem(8, soft, norm=norm, pooling=pooling))


def check_kernels(network: FlatNetwork, given: list[Tensor]) -> None:
    """First and second derivatives; and the same bits with the sweep that the first one leaves as without."""
    exact, ours = Derivatives(network), Derivatives(network, backend="kernels")
    first, sweep = ours.sweep(*given[:3])
    torch.testing.assert_close(first, exact.first(*given[:3]), rtol=1e-10, atol=1e-12)
    found = ours.second(*given, sweep)
    for one, expected in zip(found, exact.second(*given), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(one, again) for one, again in zip(found, ours.second(*given), strict=True))


@needs_kernels
@pytest.mark.parametrize(("size", "depth", "channels"), [(28, 3, 1), (32, 3, 3), (8, 1, 1), (36, 3, 2), (8, 3, 3), (8, 2, 5)])
def test_kernels_at_the_fields_sizes(size: int, depth: int, channels: int) -> None:
    """28 is padded to 32 in the first convolution; 36 is halved to 9, and that to 4; 8 ends in one pixel."""
    check_kernels(*by_hand_problem(size, False, channels, depth=depth))


@needs_kernels
@pytest.mark.parametrize("of", ["sum", "centred", "loss"])
@pytest.mark.parametrize("norm", NORMS)
def test_what_the_gradient_penalty_takes_is_autograds(norm: str, of: PenaltyOf) -> None:
    check_penalised(norm, of)


def check_penalised(norm: str, of: PenaltyOf) -> None:
    """u, the gradient to the pixels, and the gradient of <u, c> with respect to theta."""
    network, (theta, batch, labels, _) = by_hand_problem(28, False, norm=norm)
    c = torch.randn(batch.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x, point = batch.clone().requires_grad_(), theta.clone().requires_grad_()
    (u,) = torch.autograd.grad(penalised(network(point, x), labels, of), x, create_graph=True)
    (expected,) = torch.autograd.grad(u, point, grad_outputs=c)
    hand = ByHand(network, bfloat16=False)
    found, sweep = hand.of_inputs(theta, batch, labels, of)
    torch.testing.assert_close(found, u.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(hand.along_inputs(theta, c, sweep, labels, of), expected, rtol=1e-10, atol=1e-12)


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_give_the_same_bits_on_any_number_of_threads(threads: int) -> None:
    """Each image is one thread's, and sums over images run in their order."""
    torch.manual_seed(0)
    u, q = (torch.randn(6, 8, 4, 4).contiguous(memory_format=torch.channels_last) for _ in range(2))
    gain, shift = torch.rand(8) + 0.5, torch.randn(8)
    results = []
    before = torch.get_num_threads()
    try:
        for count in (threads, 3):
            torch.set_num_threads(count)
            v, norm = kernels.forward(Between(8, 1e-5, 1), u, torch.zeros(8), gain, shift)
            results.append((v, *kernels.backward(Between(8, 1e-5, 1), u, norm, gain, shift, q)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@needs_kernels
def test_kernels_round_no_worse() -> None:
    """Relative errors in float32 against float64, over some problems."""
    errors = {"kernels": 0.0, "eager": 0.0}
    for norm in NORMS:
        network, given = by_hand_problem(8, True, norm=norm)
        exact, rounded = Derivatives(network).second(*given), [x.float() for x in given]
        for backend in errors:
            pairs = zip(Derivatives(network, backend=backend).second(*rounded), exact, strict=True)
            errors[backend] += sum(((x - y).norm() / y.norm()).item() for x, y in pairs)
    assert errors["kernels"] < 1.2 * errors["eager"] < 1e-4


@needs_kernels
def test_kernels_in_bfloat16_are_near_float32() -> None:
    network, given, a = float32_problem()
    plain, half = Derivatives(network), Derivatives(network, bfloat16=True, backend="kernels")
    pairs = [(half.first(*given), plain.first(*given)), *zip(half.second(*given, a), plain.second(*given, a), strict=True)]
    for ours, theirs in pairs:
        assert ours.dtype == torch.float32
        assert 1e-4 < error(ours, theirs) < 0.2


@needs_kernels
def test_what_is_not_a_number_stays_so() -> None:
    """A comparison makes 0 of it, and a student that diverged would look as if it were well."""
    network, given = by_hand_problem(8, False)
    given[0][3] = float("nan")
    assert Derivatives(network, backend="kernels").first(*given[:3]).isnan().any()


def test_sweeps_take_the_room_that_there_is() -> None:
    network, (_, batch, _, _) = by_hand_problem(8, False, width=16)
    # a block of 16 channels: u and its gradient, v and its gradient, at 8 x 8 then 4 x 4 pixels, and at 4 x 4 then 2 x 2
    size = 5 * 16 * 8 * (2 * 64 + 2 * 16 + 2 * 16 + 2 * 4)
    kept = Derivatives(network, backend="kernels", memory_mib=1)
    assert kept.room(batch, 0) == 2**20 // size > 1
    assert [kept.room(batch, taken) for taken in (2**20 - size, 2**20 - size + 1, 2**21)] == [1, 0, 0]
    assert [kept.kept_bytes(batch, 2**20 - 3 * size, steps) for steps in (2, 3, 9)] == [2 * size, 3 * size, 3 * size]
    assert Derivatives(network, backend="kernels").room(batch, 0) == Derivatives(network, memory_mib=1).room(batch, 0) == 0


@pytest.mark.parametrize("spec", [{"pooling": "max"}, {"activation": "gelu"}, {"activation": "leaky_relu"}, {"norm": "batch"}])
def test_other_layers_have_no_kernels(spec: dict[str, Any]) -> None:
    assert not by_hand.knows(ConvNet(depth=2, width=8, **spec))
    if "norm" not in spec:
        with pytest.raises(TypeError, match="no kernels for layers FirstConvolution"):
            Derivatives(by_hand_problem(8, False, **spec)[0], backend="kernels")


@pytest.mark.parametrize(
    "spec", [MLP(family="MLP"), LeNet(family="LeNet"), ResNet18(family="ResNet18", width=4, norm="instance")]
)
def test_other_families_have_no_kernels(spec: Network) -> None:
    assert not by_hand.knows(spec)
    assert derivatives.choose(Runtime(), torch.device("cpu"), spec, 1.0) == ("eager", "")


@needs_kernels
def test_the_choice_of_a_backend() -> None:
    spec, cpu = ConvNet(depth=2, width=8), torch.device("cpu")
    assert derivatives.choose(Runtime(), cpu, spec, 1.0) == ("kernels", "")
    assert derivatives.choose(Runtime(compile="off"), cpu, spec, 1e20) == ("eager", "")
    assert derivatives.choose(Runtime(), cpu, ConvNet(depth=2, width=8, pooling="max"), 1e20)[0] == "compiled"


def test_without_a_compiler_it_is_said_where_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(kernels, "problem", functools.cache(kernels.problem.__wrapped__))
    monkeypatch.setattr(kernels, "_library", functools.cache(kernels._library.__wrapped__))
    backend, note = derivatives.choose(Runtime(), torch.device("cpu"), ConvNet(depth=2, width=8), 1e20)
    assert backend == "eager"
    assert "no-such-compiler" in note
    assert derivatives.choose(Runtime(), torch.device("cpu"), ConvNet(depth=2, width=8), 1.0) == ("eager", "")
