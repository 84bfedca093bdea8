"""Students side by side against each alone and against torch.optim.SGD; scores against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import MultiStepLR

from src.ground.errors import DivergenceError
from src.ground.settings import Protocol
from src.maths import augmentation, protocol, scores
from src.maths.derivatives import Derivatives
from src.maths.networks import FlatNetwork, flatten
from tests.reference import cross_entropy, small_network

S, K, G = 10, 5, 3
SYN_LR = 0.05


def settings(**changes: Any) -> Protocol:
    base = {"epochs": 6, "batch_size": 4, "momentum": 0.9, "weight_decay": 1e-2}
    return Protocol(**{**base, "augmentation": tuple(augmentation.KINDS), **changes})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(S, 2, 8, 8, generator=seeded(0)).double()


LABELS = torch.arange(K).repeat_interleave(S // K)


def starts(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.stack([flatten(small_network(seed)) for seed in range(G)]).to(dtype)


def trained(
    images: Tensor, students: list[int], chosen: Protocol, syn_lr: float = SYN_LR, together: bool = True, bfloat16: bool = False
) -> Tensor:
    network = FlatNetwork(small_network().to(images.dtype))
    derivatives = Derivatives(network, bfloat16)
    gradients = protocol.side_by_side(derivatives.loss) if together else protocol.one_by_one(derivatives.first)
    generators = [seeded(10 + g) for g in students]
    start = starts(images.dtype)[students]
    return protocol.train_students(network, start, images, LABELS, syn_lr, chosen, generators, gradients=gradients)


def one_by_torch(images: Tensor, student: int, chosen: Protocol) -> Tensor:
    network, generator = small_network(student), seeded(10 + student)
    rule = {"lr": SYN_LR, "momentum": chosen.momentum, "weight_decay": chosen.weight_decay}
    optimiser = torch.optim.SGD(network.parameters(), **rule)
    scheduler = MultiStepLR(optimiser, [chosen.epochs // 2 + 1], chosen.lr_drop_factor)
    for _ in range(chosen.epochs):
        for index in torch.randperm(S, generator=generator).split(chosen.batch_size):
            draw = augmentation.draw(chosen.augmentation, len(index), generator)
            batch = augmentation.apply(augmentation.Draw(draw.kind, draw.uniforms.double()), images[index])
            optimiser.zero_grad()
            cross_entropy(network(batch), LABELS[index]).backward()
            optimiser.step()
        scheduler.step()
    return flatten(network)


@pytest.mark.parametrize(
    "changes", [{}, {"epochs": 5}, {"momentum": 0.0, "augmentation": ()}, {"batch_size": 256, "weight_decay": 0.0}]
)
@pytest.mark.parametrize("together", [True, False])
def test_students_are_trained_as_torch_does(changes: dict[str, Any], together: bool, images: Tensor) -> None:
    chosen = settings(**changes)
    found = trained(images, [0, 1, 2], chosen, together=together)
    expected = torch.stack([one_by_torch(images, student, chosen) for student in range(G)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert not found.requires_grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_a_student_does_not_depend_on_those_beside_it(images: Tensor, dtype: torch.dtype, tolerance: float) -> None:
    images = images.to(dtype)
    together = trained(images, [0, 1, 2], settings())
    alone = torch.cat([trained(images, [student], settings()) for student in range(G)])
    torch.testing.assert_close(together, alone, rtol=tolerance, atol=tolerance)
    assert (together[0] - together[1]).norm() > 0.1


def test_one_by_one_a_student_does_not_even_round_differently(images: Tensor) -> None:
    images = images.float()
    beside = trained(images, [0, 1, 2], settings(), together=False)
    alone = torch.cat([trained(images, [student], settings(), together=False) for student in range(G)])
    assert torch.equal(beside, alone)


@pytest.mark.parametrize("together", [True, False])
def test_bfloat16_stays_near_float32(together: bool, images: Tensor) -> None:
    full, half = (trained(images.float(), [0, 1], settings(), 0.01, together, bfloat16) for bfloat16 in (False, True))
    assert half.dtype == torch.float32
    assert 0 < (half - full).norm() / (full - starts(torch.float32)[:2]).norm() < 0.1


def test_training_is_repeatable_and_leaves_its_arguments(images: Tensor) -> None:
    thetas, kept = starts(), images.clone()
    network = FlatNetwork(small_network())
    runs = [
        protocol.train_students(network, thetas, images, LABELS, SYN_LR, settings(), [seeded(g) for g in range(G)])
        for _ in range(2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(thetas, starts())
    assert torch.equal(images, kept)


def test_every_epoch_is_announced(images: Tensor) -> None:
    calls: list[int] = []
    network = FlatNetwork(small_network())
    protocol.train_students(
        network, starts(), images, LABELS, SYN_LR, settings(), [seeded(g) for g in range(G)], lambda: calls.append(1)
    )
    assert len(calls) == 6


def test_divergence_is_an_error_that_says_what_to_try(images: Tensor) -> None:
    with pytest.raises(DivergenceError, match=r"syn_lr 1e\+30.*lower the run's lr_init or lr_lr"):
        trained(images.float(), [0, 1], settings(), syn_lr=1e30)


def test_students_learn_a_separable_set() -> None:
    images = LABELS.double().view(-1, 1, 1, 1) * torch.randn(1, 2, 8, 8, generator=seeded(0)).double()
    images = images + 0.01 * torch.randn(S, 2, 8, 8, generator=seeded(1)).double()
    network = FlatNetwork(small_network(norm="none"))
    thetas = torch.stack([flatten(small_network(seed, norm="none")) for seed in range(2)])
    chosen = settings(epochs=150, batch_size=S, weight_decay=0.0, augmentation=())
    for theta in protocol.train_students(network, thetas, images, LABELS, 0.05, chosen, [seeded(0), seeded(1)]):
        assert scores.accuracy(scores.predictions(lambda x, t=theta: network(t, x), images), LABELS) == 1


def test_accuracy_is_a_fraction() -> None:
    assert scores.accuracy(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 3])) == 0.75
    # float32 would not hold this fraction
    predicted = torch.arange(10_001) % 3
    assert scores.accuracy(predicted, torch.zeros(10_001, dtype=torch.long)) == 3334 / 10_001


def test_mean_and_std_are_the_samples() -> None:
    values = [0.91, 0.93, 0.9, 0.97, 0.92]
    mean, std = scores.mean_and_std(values)
    assert mean == pytest.approx(np.mean(values), rel=1e-14)
    assert std == pytest.approx(np.std(values, ddof=1), rel=1e-14)


@pytest.mark.parametrize("count", [1, scores.CHUNK, 2 * scores.CHUNK + 5])
def test_predictions_are_made_chunk_by_chunk(count: int) -> None:
    images = torch.randn(count, 1, 2, 2, generator=seeded(0))
    weights = torch.randn(4, K, generator=seeded(1), requires_grad=True)
    sizes = []

    def logits(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x.flatten(1) @ weights

    found = scores.predictions(logits, images)
    assert torch.equal(found, (images.flatten(1) @ weights).argmax(1))
    assert sum(sizes) == count
    assert max(sizes) <= scores.CHUNK
