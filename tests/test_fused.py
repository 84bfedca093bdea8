"""What a GPU runs in place of own kernels, and as CUDA graphs: the same formulas in torch's operations, tested without one.

With a GPU, the recordings too.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from src.ground import runtime
from src.ground.graphs import Recorded
from src.maths import derivatives, expert_training, experts_together, fused, kernels
from src.maths.by_hand import ByHand
from src.maths.derivatives import Derivatives
from src.maths.networks import FlatNetwork
from src.settings.experts import Experts, PenaltyOf
from src.settings.networks import MLP, ConvNet
from src.settings.runtime import Runtime
from tests.test_derivatives import NORMS, by_hand_problem, check_penalised, float32_problem

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, in its compiler
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CUDA = torch.device("cuda")
COMPILED = runtime.fused


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By hand on this machine's CPU, as on a GPU, neither compiled nor recorded."""
    fused.made.cache_clear()
    monkeypatch.setattr(kernels, "is_fused", lambda _: True)
    monkeypatch.setattr(runtime, "fused", lambda function: function)
    monkeypatch.setattr(derivatives, "Recorded", lambda function: function)
    yield
    fused.made.cache_clear()


def check(network: FlatNetwork, given: list[Tensor]) -> None:
    """First and second derivatives, and the latter with the sweep that a CPU would keep."""
    exact, ours, hand = Derivatives(network), Derivatives(network, backend="fused"), ByHand(network, bfloat16=False)
    torch.testing.assert_close(ours.first(*given[:3]), exact.first(*given[:3]), rtol=1e-10, atol=1e-12)
    expected = exact.second(*given)
    for found in (ours.second(*given), hand.second(*given, hand.sweep(*given[:3])[1])):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("pooling", ["avg", "none"])
@pytest.mark.parametrize("norm", NORMS)
def test_fused_is_autograd(norm: str, pooling: str, soft: bool) -> None:
    check(*by_hand_problem(8, soft, norm=norm, pooling=pooling))


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize(("size", "depth", "channels"), [(28, 3, 1), (32, 3, 3), (8, 1, 1), (36, 3, 2), (8, 3, 3), (8, 2, 5)])
def test_fused_at_the_fields_sizes(size: int, depth: int, channels: int) -> None:
    check(*by_hand_problem(size, False, channels, depth=depth))


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("of", ["sum", "centred", "loss"])
@pytest.mark.parametrize("norm", NORMS)
def test_what_the_gradient_penalty_takes(norm: str, of: PenaltyOf) -> None:
    check_penalised(norm, of)


@pytest.mark.usefixtures("by_torch")
def test_fused_in_bfloat16_is_near_float32() -> None:
    network, given, a = float32_problem()
    plain, half = Derivatives(network), Derivatives(network, True, "fused")
    pairs = [(half.first(*given), plain.first(*given)), *zip(half.second(*given, a), plain.second(*given, a), strict=True)]
    for ours, theirs in pairs:
        assert ours.dtype == torch.float32
        assert 1e-4 < (ours - theirs).norm() / theirs.norm() < 0.2


@pytest.mark.usefixtures("by_torch")
def test_what_is_not_a_number_stays_so() -> None:
    network, given = by_hand_problem(8, False)
    given[0][3] = float("nan")
    assert Derivatives(network, backend="fused").first(*given[:3]).isnan().any()


@pytest.mark.slow
@pytest.mark.usefixtures("by_torch")
def test_fused_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the compiler that a GPU has, here for a CPU; for more shapes than it takes by itself, and without a clock's choice."""
    monkeypatch.setattr(runtime, "fused", COMPILED)
    torch.set_deterministic_debug_mode("warn")  # as a stage's start has it
    try:
        check_compiled()
    finally:
        torch.use_deterministic_algorithms(False)


def check_compiled() -> None:
    network, (theta, batch, labels, a) = by_hand_problem(8, False)
    exact, ours = Derivatives(network), Derivatives(network, backend="fused")
    for images in (5, 4, 3, 2, 1):  # two layers each
        given = theta, batch[:images], labels[:images], a
        for one, other in zip(ours.second(*given), exact.second(*given), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_experts_side_by_side_are_those_alone(penalty: float) -> None:
    check_experts(penalty, torch.device("cpu"), 1e-10)


def check_experts(penalty: float, device: torch.device, accuracy: float) -> None:
    """Three experts side by side on a device, as on a GPU, and each by autograd on the CPU."""
    network, (theta, batch, labels, a) = by_hand_problem(8, False)
    settings = Experts(dataset="", network="", count=3, epochs=1, batch_size=5, lr=0.1, gradient_penalty=penalty)
    thetas = torch.stack([theta, theta + 0.01 * a, theta - 0.01 * a])
    batches, plain = torch.stack([batch, batch + 1, -batch]), torch.stack([batch, -batch, batch])
    given = (thetas, batches, plain, torch.stack([labels] * 3), torch.tensor([1.0, 0.5, 2.0]).double())
    together = experts_together.differentiate(network, settings, backend="fused")(*(x.to(device) for x in given))
    alone = expert_training.differentiate(network, settings)
    for index, one in enumerate(zip(*given, strict=True)):
        for ours, expected in zip(together, alone(*one), strict=True):
            torch.testing.assert_close(ours[index].cpu(), expected, rtol=accuracy, atol=accuracy / 100)


def test_a_gpu_takes_its_own_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Triton, or a compiler for it, it says so and goes without."""
    cpu, plain, found = torch.device("cpu"), ConvNet(depth=2, width=8), {"triton": True, "error": ""}
    monkeypatch.setattr(runtime, "has_triton", lambda: found["triton"])
    monkeypatch.setattr(runtime, "_first_error", lambda *_: found["error"])
    monkeypatch.setenv("CC", "/bin/sh")
    assert derivatives.choose(Runtime(), CUDA, plain, 1.0) == ("fused", "")
    assert derivatives.choose(Runtime(compile="on"), CUDA, MLP(family="MLP"), 1.0) == ("graphs", "")
    assert derivatives.choose(Runtime(compile="off"), CUDA, plain, 1e20) == ("eager", "")
    assert derivatives.choose(Runtime(), cpu, MLP(family="MLP"), 1.0) == ("eager", "")
    found["error"] = "Python.h: No such file or directory"
    backend, note = derivatives.choose(Runtime(), CUDA, plain, 1.0)
    assert backend == "graphs"
    assert "Python.h" in note
    monkeypatch.setenv("CC", "no-such-compiler")
    assert derivatives.choose(Runtime(), CUDA, MLP(family="MLP"), 1.0) == ("graphs", "")
    backend, note = derivatives.choose(Runtime(), CUDA, plain, 1.0)
    assert backend == "graphs"
    assert "install gcc" in note
    found["triton"] = False
    backend, note = derivatives.choose(Runtime(), CUDA, plain, 1.0)
    assert backend == "graphs"
    assert "no Triton" in note


# -- on a GPU


@needs_gpu
def test_a_recording_gives_the_same_bytes() -> None:
    """For shapes that come again, arguments that are written over, and after other recordings are gone."""
    x = torch.randn(7, 5, device=CUDA)
    function = lambda x, y: (x @ y, (x.exp() * 2).sum())  # noqa: E731
    for _ in range(2):
        recorded = Recorded(function)
        for rows in (7, 3, 7):
            found = recorded(x[:rows], x[:rows].t().contiguous())
            kept = [one.clone() for one in found]
            assert all(map(torch.equal, found, function(x[:rows], x[:rows].t().contiguous())))
            recorded(x[:rows] + 1, x[:rows].t().contiguous())
            assert all(map(torch.equal, found, kept))
        del recorded


@needs_gpu
@pytest.mark.parametrize("backend", ["graphs", "fused"])
def test_derivatives_on_a_gpu_are_those_of_the_cpu(backend: derivatives.Backend) -> None:
    network, given = by_hand_problem(28, True, 1, depth=3)
    exact, ours = Derivatives(network), Derivatives(network, backend=backend)
    there = [x.to(CUDA) for x in given]
    pairs = [(ours.first(*there[:3]), exact.first(*given[:3])), *zip(ours.second(*there), exact.second(*given), strict=True)]
    for one, other in pairs:
        torch.testing.assert_close(one.cpu(), other, rtol=1e-9, atol=1e-11)


@needs_gpu
@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_experts_on_a_gpu_are_those_of_the_cpu(penalty: float) -> None:
    check_experts(penalty, CUDA, 1e-9)
