"""First and second derivatives against autograd, forward mode and finite differences; compiled and in half precision."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.func import grad, jvp

from src.maths import networks
from src.maths.derivatives import Derivatives
from src.maths.networks import FlatNetwork, ImageShape, flatten
from src.settings.networks import MLP, ConvNet, LeNet, Network, ResNet18
from tests.reference import cross_entropy, small_network

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
    derivatives = Derivatives(network)
    assert error(derivatives.first(theta, batch, labels), expected) < 1e-13
    assert derivatives.loss(theta, batch, labels).item() == pytest.approx(cross_entropy(module(batch), labels).item())


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
    derivatives, width = Derivatives(network), 1e-5

    def change(function: Any, position: int, along: Tensor) -> float:
        up, down = ([x + s * along if i == position else x for i, x in enumerate(given)] for s in (width, -width))
        return ((function(*up) - function(*down)) / (2 * width)).item()

    slope = derivatives.first(*given).dot(a).item()
    assert change(derivatives.loss, 0, a) == pytest.approx(slope, rel=1e-6)
    for position, found in enumerate(derivatives.second(*given, a)):
        along = normal(*given[position].shape, seed=4)
        expected = change(lambda *moved: derivatives.first(*moved).dot(a), position, along)
        assert (found * along).sum().item() == pytest.approx(expected, rel=1e-6)


@labelled
def test_results_hold_no_graph_and_arguments_stay_as_they_were(labels: Tensor) -> None:
    network, theta, batch, a = problem()
    given = [theta, batch, labels]
    kept = [x.clone() for x in given]
    theta.requires_grad_()
    derivatives = Derivatives(network)
    results = [derivatives.first(*given), *derivatives.second(*given, a)]
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
    eager, compiled = Derivatives(network), Derivatives(network, compiled=True)
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


# -- by hand


def by_hand_problem(size: int, soft: bool, **spec: Any) -> tuple[Derivatives, list[Tensor]]:
    """A ConvNet of two blocks off its initialisation, with 5 images of 3 channels and 4 classes, in float64."""
    draws = torch.Generator().manual_seed(1)
    module = networks.build(ConvNet(**{"depth": 2, "width": 8, **spec}), ImageShape(3, size, 4), draws)
    theta = flatten(module).double()
    theta = theta + 0.1 * torch.randn(theta.shape, generator=draws, dtype=torch.float64)
    batch = torch.randn(5, 3, size, size, generator=draws, dtype=torch.float64)
    labels = torch.rand(5, 4, generator=draws, dtype=torch.float64) if soft else torch.tensor([0, 3, 1, 1, 2])
    a = torch.randn(theta.shape, generator=draws, dtype=torch.float64)
    return Derivatives(FlatNetwork(module)), [theta, batch, labels, a]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("pooling", ["avg", "none"])
@pytest.mark.parametrize("norm", ["instance", "layer", "group", "none"])
def test_derivatives_by_hand_are_those_of_autograd(norm: str, pooling: str, soft: bool) -> None:
    check_by_hand(*by_hand_problem(8, soft, norm=norm, pooling=pooling))


def check_by_hand(derivatives: Derivatives, given: list[Tensor]) -> None:
    assert derivatives.first != derivatives._first
    assert derivatives.second != derivatives._second
    first, expected_first = derivatives.first(*given[:3]), derivatives._first(*given[:3])
    torch.testing.assert_close(first, expected_first, rtol=1e-10, atol=1e-12)
    for found, expected in zip(derivatives.second(*given), derivatives._second(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("size", "depth"), [(28, 3), (32, 3), (8, 1), (36, 3)])
def test_by_hand_at_the_fields_sizes(size: int, depth: int) -> None:
    """28 is padded to 32 in the first convolution; 36 is halved to 9, and that to 4."""
    check_by_hand(*by_hand_problem(size, False, depth=depth))


def test_by_hand_rounds_no_worse() -> None:
    """Relative errors in float32 against float64, over some problems."""
    errors = {"hand": 0.0, "double": 0.0}
    for norm in ("instance", "layer", "group", "none"):
        derivatives, given = by_hand_problem(8, True, norm=norm)
        exact, rounded = derivatives._second(*given), [x.float() for x in given]
        for way, function in (("hand", derivatives.second), ("double", derivatives._second)):
            pairs = zip(function(*rounded), exact, strict=True)
            errors[way] += sum(((x - y).norm() / y.norm()).item() for x, y in pairs)
    assert errors["hand"] < 1.2 * errors["double"] < 1e-4


@pytest.mark.parametrize("spec", [{"pooling": "max"}, {"activation": "gelu"}, {"activation": "leaky_relu"}])
def test_other_layers_are_differentiated_twice(spec: dict[str, Any]) -> None:
    derivatives, _ = by_hand_problem(8, False, **spec)
    assert derivatives.second == derivatives._second


@pytest.mark.parametrize(
    "spec", [MLP(family="MLP"), LeNet(family="LeNet"), ResNet18(family="ResNet18", width=4, norm="instance")]
)
def test_other_families_are_differentiated_twice(spec: Network) -> None:
    derivatives = Derivatives(FlatNetwork(networks.build(spec, ImageShape(3, 32, 4), torch.Generator())))
    assert derivatives.second == derivatives._second
