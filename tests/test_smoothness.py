"""Clipping coefficients, gradient penalty and parameter steps against closed forms and brute force."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.maths.derivatives import Derivatives
from src.maths.networks import FlatNetwork, flatten
from src.maths.smoothness import clipping_coefficient, common_logit_steps, gradient_penalty, parameter_steps
from src.settings.experts import Experts
from tests.reference import small_network

B, C, SIDE, K = 4, 3, 2, 5
LABELS = torch.tensor([0, 3, 1, 1])


def settings(**changes: Any) -> Experts:
    return Experts(**{"dataset": "d", "network": "n", "count": 1, "epochs": 50, "lr": 0.1, **changes})


def linear() -> Tensor:
    """W (K, C * H * W) of z = W x."""
    return torch.randn(K, C * SIDE * SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def images(channels: int = C, side: int = SIDE) -> Tensor:
    return torch.randn(B, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def penalty_of(weights: Tensor, axes: str) -> Tensor:
    return gradient_penalty(lambda x: x.flatten(1) @ weights.T, images(), LABELS, settings(gradient_penalty_axes=axes))


def test_clipping_rises_by_a_twentieth_then_stays_at_one() -> None:
    chosen = settings(clipping_loss=True)
    expected = [0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95] + [1.0] * 40
    assert [clipping_coefficient(epoch, chosen) for epoch in range(50)] == pytest.approx(expected, rel=1e-14)


def test_clipping_with_other_start_end_and_length() -> None:
    chosen = settings(clipping_loss=True, clipping_start=0.2, clipping_end=0.8, clipping_epochs=3)
    assert [clipping_coefficient(epoch, chosen) for epoch in range(5)] == pytest.approx([0.2, 0.5, 0.8, 1, 1])
    single = settings(clipping_loss=True, clipping_epochs=1)
    assert [clipping_coefficient(epoch, single) for epoch in range(3)] == [0.5, 1, 1]


def test_clipping_off() -> None:
    assert all(clipping_coefficient(epoch, settings()) == 1 for epoch in range(12))


def test_penalty_of_a_linear_network() -> None:
    u = linear().sum(0).view(C, SIDE, SIDE)  # d(sum of logits)/dx, the same for every image
    by_pixel = [(u[:, r, c].pow(2).sum().sqrt() - 1) ** 2 for r in range(SIDE) for c in range(SIDE)]
    assert penalty_of(linear(), "channels").item() == pytest.approx(sum(by_pixel).item() / len(by_pixel), rel=1e-12)
    assert penalty_of(linear(), "image").item() == pytest.approx((u.pow(2).sum().sqrt().item() - 1) ** 2, rel=1e-12)


def test_penalty_of_what_the_loss_sees_of_a_linear_network() -> None:
    """u is W_y - mean W for the centred logit, and W^T (s - y) for the cross-entropy."""
    x = images().flatten(1)
    s = (x @ linear().T).softmax(1)
    y = torch.nn.functional.one_hot(LABELS, K).double()
    for of, u in (("centred", (y - 1 / K) @ linear()), ("loss", (s - y) @ linear())):
        norms = u.view(B, C, SIDE, SIDE).pow(2).sum(1).sqrt()
        found = gradient_penalty(lambda x: x.flatten(1) @ linear().T, images(), LABELS, settings(gradient_penalty_of=of))
        assert found.item() == pytest.approx((norms - 1).pow(2).mean().item(), rel=1e-12)


def test_penalty_gradient_of_a_linear_network() -> None:
    weights = linear().requires_grad_()
    penalty_of(weights, "channels").backward()
    u = linear().sum(0).view(C, SIDE, SIDE)
    norm = u.pow(2).sum(0, keepdim=True).sqrt()
    expected = (2 * (norm - 1) / norm * u / SIDE**2).flatten()  # the same for each class
    torch.testing.assert_close(weights.grad, expected.expand(K, -1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("axes", ["channels", "image"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gradient_stays_finite(axes: str, dtype: torch.dtype) -> None:
    weights = linear().to(dtype)
    weights.view(K, C, SIDE, SIDE)[:, :, 0, 0] = 0  # a dead pixel
    for w in (weights, torch.zeros_like(weights)):
        w.requires_grad_()
        value = gradient_penalty(
            lambda x, w=w: x.flatten(1) @ w.T, images().to(dtype), LABELS, settings(gradient_penalty_axes=axes)
        )
        value.backward()
        assert value.isfinite()
        assert w.grad.isfinite().all()
    assert value.item() == pytest.approx(1)  # no gradient anywhere: (0 - 1)^2


@pytest.mark.parametrize("axes", ["channels", "image"])
def test_penalty_of_a_convnet_equals_a_loop_over_images(axes: str) -> None:
    network, batch = small_network(channels=C), images(side=8)
    total, terms = torch.zeros((), dtype=torch.float64), 0
    for image in batch:
        x = image.clone().requires_grad_()
        u = sum(torch.autograd.grad(network(x[None])[0, k], x, create_graph=True)[0] for k in range(K))
        norms = u.norm(dim=0).flatten() if axes == "channels" else u.norm().view(1)
        total, terms = total + ((norms - 1) ** 2).sum(), terms + len(norms)
    expected = total / terms
    found = gradient_penalty(network, batch, torch.zeros(len(batch), dtype=torch.long), settings(gradient_penalty_axes=axes))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    # norms' biases do not move u, hence allow_unused
    ours = torch.autograd.grad(found, list(network.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(expected, list(network.parameters()), allow_unused=True)
    assert sum(g is not None for g in ours) >= 4
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_penalty_leaves_the_images_as_they_were() -> None:
    x = images()
    gradient_penalty(lambda x: x.flatten(1) @ linear().T, x, LABELS, settings())
    assert torch.equal(x, images())
    assert not x.requires_grad
    assert x.grad is None


def test_parameter_steps() -> None:
    trajectory = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [2.0, 4.0]])
    assert parameter_steps(trajectory).tolist() == [25, 0, 1]
    assert parameter_steps(trajectory[:1]).shape == (0,)


def test_common_logit_steps() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    step = torch.tensor([1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 1.0, -1.0, 0.0])  # the weight's rows and the bias
    trajectory = torch.stack([torch.zeros(9), step, step])
    found = common_logit_steps(trajectory, FlatNetwork(network))
    assert found.tolist() == [3 * 2.0**2, 0]  # the rows' mean is (2, 0), the bias's 0


def test_the_cross_entropy_never_moves_all_logits_alike_and_the_penalty_does() -> None:
    network = FlatNetwork(module := small_network())
    theta = flatten(module).requires_grad_()
    batch = torch.randn(6, 2, 8, 8, dtype=theta.dtype, generator=torch.Generator().manual_seed(2))

    def common_share(loss: Tensor) -> float:
        (gradient,) = torch.autograd.grad(loss, theta)
        step = torch.stack([torch.zeros_like(gradient), gradient])
        return (common_logit_steps(step, network) / parameter_steps(step)).item()

    assert common_share(Derivatives(network).loss(theta, batch, torch.arange(6) % 5)) < 1e-25
    labels = torch.arange(6) % 5
    shares = {}
    for of in ("sum", "centred", "loss"):
        value = gradient_penalty(lambda x: network(theta, x), batch, labels, settings(gradient_penalty_of=of))
        shares[of] = common_share(value)
    assert shares["sum"] > 0.05
    assert max(shares["centred"], shares["loss"]) < 1e-25
