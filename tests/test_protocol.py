"""Students side by side against each alone and against torch.optim.SGD; scores against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR

from src.ground.errors import DivergenceError
from src.maths import augmentation, protocol, scores
from src.maths.derivatives import Derivatives
from src.maths.networks import FlatNetwork, flatten
from src.settings.networks import ConvNet
from src.settings.protocols import Protocol
from src.settings.runtime import Runtime
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


SOFT = torch.randn(S, K, generator=seeded(5)).double().softmax(1)


def trained(
    images: Tensor,
    students: list[int],
    chosen: Protocol,
    syn_lr: float = SYN_LR,
    together: bool = True,
    bfloat16: bool = False,
    labels: Tensor = LABELS,
) -> Tensor:
    network = FlatNetwork(small_network().to(images.dtype))
    derivatives = Derivatives(network, bfloat16)
    gradients = protocol.side_by_side(derivatives.loss) if together else protocol.one_by_one(derivatives.first)
    generators = [seeded(10 + g) for g in students]
    start = starts(images.dtype)[students]
    return protocol.train_students(network, start, images, labels, syn_lr, chosen, generators, gradients=gradients)


def one_by_torch(images: Tensor, student: int, chosen: Protocol, labels: Tensor = LABELS) -> Tensor:
    network, generator = small_network(student), seeded(10 + student)
    rule = {"lr": SYN_LR, "momentum": chosen.momentum, "weight_decay": chosen.weight_decay}
    optimiser = torch.optim.SGD(network.parameters(), **rule)
    scheduler = MultiStepLR(optimiser, [chosen.epochs // 2 + 1], chosen.lr_drop_factor)
    for _ in range(chosen.epochs):
        for index in torch.randperm(S, generator=generator).split(chosen.batch_size):
            draw = augmentation.draw(chosen.augmentation, len(index), generator)
            batch = augmentation.apply(augmentation.Draw(draw.kind, draw.uniforms.double()), images[index])
            optimiser.zero_grad()
            cross_entropy(network(batch), labels[index]).backward()
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


@pytest.mark.parametrize("together", [True, False])
def test_students_learn_probabilities(together: bool, images: Tensor) -> None:
    found = trained(images, [0, 1, 2], settings(), together=together, labels=SOFT)
    expected = torch.stack([one_by_torch(images, student, settings(), SOFT) for student in range(G)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    certain = trained(images, [0], settings(), together=together, labels=torch.eye(K).double()[LABELS])
    torch.testing.assert_close(certain, trained(images, [0], settings(), together=together), rtol=1e-10, atol=1e-12)


SCORED = settings(epochs=5, test_every=2)  # tested after epochs 2, 4 and 5


def test_the_best_tested_epoch_is_each_students_own(images: Tensor) -> None:
    reached = iter(torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.3, 0.0], [0.5, 0.2, 0.1]], dtype=torch.float64))
    seen: list[Tensor] = []

    def score(thetas: Tensor) -> Tensor:
        seen.append(thetas.clone())
        return next(reached)

    network, draws = FlatNetwork(small_network()), [seeded(10 + g) for g in range(G)]
    found = protocol.train_students(network, starts(), images, LABELS, SYN_LR, SCORED, draws, score=score)
    assert len(seen) == 3
    assert [torch.equal(found[g], seen[epoch][g]) for g, epoch in enumerate((1, 0, 2))] == [True] * 3
    assert torch.equal(seen[2], trained(images, [0, 1, 2], SCORED))


def with_statistics(seed: int) -> nn.Module:
    return small_network(seed, norm="batch")


def module_by_hand(network: nn.Module, images: Tensor, chosen: Protocol, labels: Tensor, generator: torch.Generator) -> None:
    """SGD with momentum and decay in its own words; running statistics are torch's."""
    network.train()
    parameters = list(network.parameters())
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    for epoch in range(chosen.epochs):
        lr = SYN_LR * (chosen.lr_drop_factor if epoch > chosen.epochs // 2 else 1)
        for index in torch.randperm(S, generator=generator).split(chosen.batch_size):
            draw = augmentation.draw(chosen.augmentation, len(index), generator)
            batch = augmentation.apply(augmentation.Draw(draw.kind, draw.uniforms.double()), images[index])
            gradient = torch.autograd.grad(cross_entropy(network(batch), labels[index]), parameters)
            velocity = [
                chosen.momentum * v + g + chosen.weight_decay * p.detach()
                for v, g, p in zip(velocity, gradient, parameters, strict=True)
            ]
            with torch.no_grad():
                for parameter, v in zip(parameters, velocity, strict=True):
                    parameter -= lr * v


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["classes", "probabilities"])
@pytest.mark.parametrize("changes", [{}, {"epochs": 5, "momentum": 0.0}, {"batch_size": 256, "augmentation": ()}])
def test_students_with_running_statistics_are_trained_as_by_hand(
    changes: dict[str, Any], labels: Tensor, images: Tensor
) -> None:
    chosen, student, expected = settings(**changes), with_statistics(1), with_statistics(1)
    start, epochs = {name: tensor.clone() for name, tensor in student.state_dict().items()}, []
    for _ in protocol.ModuleStudent(student, chosen, seeded(10)).epochs(images, labels, SYN_LR):
        epochs.append(1)
    module_by_hand(expected, images, chosen, labels, seeded(10))
    assert len(epochs) == chosen.epochs
    for name, tensor in student.state_dict().items():
        assert not torch.equal(tensor, start[name]), name
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-10, atol=1e-12)
    alone, among = student(images[:1]), student(images)[:1]
    torch.testing.assert_close(alone, among)  # tested with running statistics, whatever else is in the batch
    assert (expected(images)[:1] - among).norm() > 1e-3


def test_the_best_tested_epoch_keeps_its_running_statistics(images: Tensor) -> None:
    reached, seen = iter([0.2, 0.7, 0.7]), []

    def score(student: nn.Module) -> float:
        assert not student.training
        seen.append({name: tensor.clone() for name, tensor in student.state_dict().items()})
        return next(reached)

    student = with_statistics(0)
    list(protocol.ModuleStudent(student, SCORED, seeded(10)).epochs(images, LABELS, SYN_LR, score=score))
    assert len(seen) == 3
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in student.state_dict().items())
    assert not torch.equal(flatten(student), torch.cat([seen[2][name].flatten() for name, _ in student.named_parameters()]))


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_a_student_with_running_statistics_goes_on_in_another(momentum: float, images: Tensor) -> None:
    """From every epoch, with the optimiser, the generator and the best epoch so far."""
    chosen = SCORED.model_copy(update={"momentum": momentum})
    reached = [0.2, 0.7, 0.7]  # after epochs 2, 4 and 5
    whole = protocol.ModuleStudent(with_statistics(0), chosen, seeded(10))
    left = iter(reached)
    states = [whole.state() for _ in whole.epochs(images, LABELS, SYN_LR, score=lambda _: next(left))]
    expected = whole.module.state_dict()
    for finished in range(1, 5):
        left = iter(reached[finished // 2 :])
        other = protocol.ModuleStudent(with_statistics(1), chosen, seeded(11))
        other.resume(states[finished - 1], finished)
        list(other.epochs(images, LABELS, SYN_LR, score=lambda _, left=left: next(left)))
        assert all(torch.equal(tensor, expected[name]) for name, tensor in other.module.state_dict().items())


def test_divergence_with_running_statistics_is_the_same_error(images: Tensor) -> None:
    with pytest.raises(DivergenceError, match=r"syn_lr 1e\+200.*lower the run's lr_init or lr_lr"):
        list(protocol.ModuleStudent(with_statistics(0), settings(), seeded(0)).epochs(images, LABELS, 1e200))


def test_networks_with_running_statistics_train_one_by_one_and_eagerly() -> None:
    asked = Runtime(compile="on")
    for device in (torch.device("cpu"), torch.device("cuda")):
        way = protocol.choose(asked, device, settings(), 10, 1e3, ConvNet(depth=2, width=4, norm="batch"))
        assert (way.together, way.backend) == (False, "eager")


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
