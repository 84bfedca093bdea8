"""Expert training against a plain loop over torch.optim and torch's own scheduler, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR

from src.ground import runtime
from src.ground.errors import DivergenceError
from src.maths import augmentation, expert_training
from src.maths.expert_training import Gradient
from src.maths.networks import FlatNetwork, flatten
from src.settings.experts import Experts, PenaltyOf
from tests.reference import cross_entropy, needs_kernels, small_network

N, K = 22, 5
AST = {
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "lr_drop_factor": 0.6,
    "augmentation": tuple(augmentation.KINDS),
    "clipping_loss": True,
    "clipping_epochs": 3,
    "gradient_penalty": 2.0,
}


def settings(**changes: Any) -> Experts:
    base = {"dataset": "d", "network": "n", "count": 1, "epochs": 5, "batch_size": 8, "lr": 0.05}
    return Experts(**{**base, **changes})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(N, 2, 8, 8, generator=seeded(1)).double()


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(K, (N,), generator=seeded(2))


def penalty(network: nn.Module, batch: Tensor, axes: str) -> Tensor:
    batch = batch.clone().requires_grad_()
    u = torch.autograd.grad(network(batch).sum(), batch, create_graph=True)[0]
    norm = torch.linalg.vector_norm(u, dim=1 if axes == "channels" else (1, 2, 3))
    return ((norm - 1) ** 2).mean()


def plain_training(images: Tensor, labels: Tensor, chosen: Experts, seed: int) -> list[tuple[Tensor, float, float]]:
    """Parameters, mean cross-entropy and mean penalty after each epoch, by a loop as a beginner would write it."""
    network, generator, epochs = small_network(), seeded(seed), []
    common = {"lr": chosen.lr, "weight_decay": chosen.weight_decay}
    if chosen.optimiser == "adam":
        optimiser: torch.optim.Optimizer = torch.optim.Adam(network.parameters(), **common)
    else:
        optimiser = torch.optim.SGD(network.parameters(), momentum=chosen.momentum, **common)
    scheduler = MultiStepLR(optimiser, [chosen.epochs // 2 + 1], chosen.lr_drop_factor)
    for epoch in range(chosen.epochs):
        order, losses, penalties = torch.randperm(N, generator=generator), [], []
        for start in range(0, N, chosen.batch_size):
            index = order[start : start + chosen.batch_size]
            draw = augmentation.draw(chosen.augmentation, len(index), generator)
            batch = augmentation.apply(augmentation.Draw(draw.kind, draw.uniforms.double()), images[index])
            losses.append(cross_entropy(network(batch), labels[index]))
            penalties.append(penalty(network, images[index], chosen.gradient_penalty_axes))
            rise = (chosen.clipping_end - chosen.clipping_start) / max(chosen.clipping_epochs - 1, 1)
            scaled = chosen.clipping_loss and epoch < chosen.clipping_epochs
            factor = chosen.clipping_start + rise * epoch if scaled else 1
            optimiser.zero_grad()
            (factor * losses[-1] + chosen.gradient_penalty * penalties[-1]).backward()
            optimiser.step()
        scheduler.step()
        means = [sum(values).item() / len(values) for values in (losses, penalties)]
        epochs.append((nn.utils.parameters_to_vector(network.parameters()).detach().clone(), *means))
    return epochs


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.9, "weight_decay": 1e-2, "lr_drop_factor": 0.6},
        {"augmentation": ("crop", "scale")},
        {"clipping_loss": True, "clipping_epochs": 3},
        {"gradient_penalty": 2.0},
        AST,
        {**AST, "gradient_penalty_axes": "image", "epochs": 4},
        {**AST, "optimiser": "adam", "lr": 0.003},
    ],
)
def test_training_equals_the_plain_loop(changes: dict[str, Any], images: Tensor, labels: Tensor) -> None:
    chosen = settings(**changes)
    found = list(expert_training.train(small_network(), images, labels, chosen, seeded(3)))[1:]
    expected = plain_training(images, labels, chosen, 3)
    for epoch, (theta, loss, gradient_penalty) in zip(found, expected, strict=True):
        torch.testing.assert_close(epoch.theta, theta, rtol=1e-9, atol=1e-11)
        assert epoch.train_loss == pytest.approx(loss, rel=1e-9)
        assert epoch.penalty == pytest.approx(gradient_penalty if chosen.gradient_penalty else 0, rel=1e-9)


def test_trajectory_starts_at_the_initialisation_and_has_every_epoch(images: Tensor, labels: Tensor) -> None:
    network = small_network()
    trajectory = list(expert_training.train(network, images, labels, settings(), seeded(0)))
    assert [epoch.number for epoch in trajectory] == [0, 1, 2, 3, 4, 5]
    assert torch.equal(trajectory[0].theta, flatten(small_network()))
    assert torch.equal(flatten(network), flatten(small_network()))
    assert trajectory[0].train_loss != trajectory[0].train_loss  # nan
    assert trajectory[0].penalty == 0


def test_snapshots_are_distinct_and_share_no_memory(images: Tensor, labels: Tensor) -> None:
    seen = [(e, e.theta.clone()) for e in expert_training.train(small_network(), images, labels, settings(), seeded(0))]
    for epoch, kept in seen:
        assert torch.equal(epoch.theta, kept)
        assert not epoch.theta.requires_grad
    for (a, _), (b, _) in combinations(seen, 2):
        assert not torch.equal(a.theta, b.theta)
        assert a.theta.untyped_storage().data_ptr() != b.theta.untyped_storage().data_ptr()


def test_stopping_early_gives_the_first_epochs_bit_for_bit(images: Tensor, labels: Tensor) -> None:
    """Clipping, the learning rate's drop and the draws follow all epochs."""
    whole, first = (
        list(expert_training.train(small_network(), images, labels, settings(**AST, stop_epoch=stop), seeded(3)))
        for stop in (None, 4)
    )
    assert len(whole) == 6
    assert len(first) == 5
    assert all(torch.equal(a.theta, b.theta) and a.penalty == b.penalty for a, b in zip(first, whole, strict=False))


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_chunks_of_a_batch_change_nothing(chunk: int, images: Tensor, labels: Tensor) -> None:
    whole, found = (
        list(expert_training.train(small_network(), images, labels, settings(**AST), seeded(3), chunk=size))[-1]
        for size in (None, chunk)
    )
    torch.testing.assert_close(found.theta, whole.theta, rtol=1e-9, atol=1e-11)
    assert (found.train_loss, found.penalty) == pytest.approx((whole.train_loss, whole.penalty), rel=1e-9)


def gradients_of(images: Tensor, labels: Tensor, change: Callable[[Gradient], Gradient], **options: Any) -> tuple[Tensor, ...]:
    network = small_network(depth=1, norm="group").to(images.dtype)
    gradient = change(expert_training.differentiate(FlatNetwork(network), settings(**AST), **options))
    return gradient(flatten(network), images, images.flip(-1), labels, images.new_tensor(0.7))


def test_compiled_derivative_equals_the_eager_one(images: Tensor, labels: Tensor) -> None:
    """With the penalty's second derivatives; in float64, as kinks make the lower bits of float32 a matter of luck."""
    eager = gradients_of(images[:4], labels[:4], lambda gradient: gradient)
    compiled = gradients_of(images[:4], labels[:4], runtime.compiled)
    for found, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        assert not found.requires_grad


@needs_kernels
@pytest.mark.parametrize("of", ["sum", "centred", "loss"])
def test_own_kernels_equal_autograd(of: PenaltyOf, images: Tensor, labels: Tensor) -> None:
    network, chosen = small_network(), settings(**AST, gradient_penalty_of=of)
    found, expected = (
        expert_training.differentiate(FlatNetwork(network), chosen, backend=backend)(
            flatten(network), images, images.flip(-1), labels, images.new_tensor(0.7)
        )
        for backend in ("kernels", "eager")
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_a_sharpness_aware_step_on_a_quadratic(labels: Tensor) -> None:
    """The loss theta^2 x / 2 has gradient x theta: at theta + rho sign(theta) it is x (theta + rho sign(theta))."""
    curvature, rho = 3.0, 0.05

    def gradient(theta: Tensor, augmented: Tensor, plain: Tensor, labels: Tensor, coefficient: Tensor) -> Any:
        nothing = theta.new_zeros(())
        return coefficient * curvature * theta, nothing, nothing

    chosen = settings(epochs=1, batch_size=N, lr=0.1, sharpness=rho, augmentation=())
    state = expert_training.start(small_network(), seeded(0))
    theta = torch.tensor([3.0, -4.0], dtype=torch.float64)
    state = replace(state, theta=theta, moments=torch.zeros(2, 2, dtype=torch.float64))
    (after,) = expert_training.steps(state, torch.zeros(N, 1, 2, 2), labels, chosen, gradient, None)
    torch.testing.assert_close(after.theta, theta - 0.1 * curvature * (theta + rho * theta / 5), rtol=1e-12, atol=0)


def test_bfloat16_keeps_parameters_and_losses_in_float32(images: Tensor, labels: Tensor) -> None:
    expected = gradients_of(images.float(), labels, lambda gradient: gradient)
    found = gradients_of(images.float(), labels, lambda gradient: gradient, bfloat16=True)
    assert {one.dtype for one in found} == {torch.float32}
    assert not torch.equal(found[0], expected[0])
    assert torch.nn.functional.cosine_similarity(found[0], expected[0], dim=0) > 0.98
    assert [one.item() for one in found[1:]] == pytest.approx([one.item() for one in expected[1:]], rel=0.03)


def test_work_is_counted_in_forward_passes() -> None:
    assert expert_training.passes(settings(), 100) == 5 * 100 * 3
    assert expert_training.passes(settings(gradient_penalty=2.0, stop_epoch=2), 100) == 2 * 100 * 12
    assert expert_training.passes(settings(sharpness=0.01), 100) == 5 * 100 * 3 * 2


def test_same_seed_same_bytes(images: Tensor, labels: Tensor) -> None:
    def trajectory(seed: int) -> Tensor:
        chosen = settings(**AST)
        epochs = expert_training.train(small_network().float(), images.float(), labels, chosen, seeded(seed))
        return torch.stack([epoch.theta for epoch in epochs])

    first = trajectory(0)
    assert torch.equal(first, trajectory(0))
    assert not torch.equal(first, trajectory(1))


def test_clipping_scales_the_cross_entropy_only(images: Tensor, labels: Tensor) -> None:
    """With the cross-entropy all but off, the one step taken is down the unscaled penalty."""
    chosen = settings(
        epochs=1, batch_size=N, clipping_loss=True, clipping_start=1e-12, clipping_end=1e-12, gradient_penalty=2.0
    )
    start, end = expert_training.train(small_network(), images, labels, chosen, seeded(0))
    network = small_network()
    (2 * penalty(network, images, "channels")).backward()
    slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    slope = torch.cat([s.view(-1) for s in slopes])
    assert slope.norm() > 0
    torch.testing.assert_close(end.theta - start.theta, -chosen.lr * slope, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_divergence_is_an_error_that_says_what_to_try(weight: float, images: Tensor, labels: Tensor) -> None:
    chosen = settings(lr=1e30, gradient_penalty=weight)
    epochs = expert_training.train(small_network().float(), images.float(), labels, chosen, seeded(0))
    assert next(epochs).number == 0
    with pytest.raises(DivergenceError, match=r"epoch 1 .*lr 1e\+30.*lower the experts' lr"):
        list(epochs)
