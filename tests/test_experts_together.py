"""Experts side by side, as a GPU trains them, on the CPU in float64: each is the same as alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from src.maths import expert_training, experts_together, networks
from src.maths.augmentation import KINDS
from src.maths.expert_training import State
from src.maths.networks import FlatNetwork, ImageShape
from src.settings.experts import Experts
from src.settings.networks import ConvNet, Network

SHAPE = ImageShape(2, 8, 3)
IMAGES = torch.randn(10, 2, 8, 8, generator=torch.Generator().manual_seed(0)).double()
LABELS = torch.arange(10) % 3
KINDS_OF_TRAINING: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "weight_decay": 1e-2, "lr_drop_factor": 0.5},
    "adam": {"optimiser": "adam"},
    "clipping": {"clipping_loss": True, "clipping_epochs": 2},
    "penalty": {"gradient_penalty": 2.0},
    "penalty of whole images": {"gradient_penalty": 2.0, "gradient_penalty_axes": "image"},
    "penalty of what the loss sees": {"gradient_penalty": 2.0, "gradient_penalty_of": "loss"},
    "centred penalty": {"gradient_penalty": 2.0, "gradient_penalty_of": "centred"},
    "sharpness-aware": {"sharpness": 0.05},
    "augmented": {"augmentation": tuple(KINDS)},
}
NETWORKS: list[Network] = [
    ConvNet(depth=2, width=4),
    ConvNet(depth=1, width=3, norm="none", pooling="max"),
    ConvNet(depth=2, width=4, norm="group", activation="gelu"),
]


def asked(**changes: Any) -> Experts:
    return Experts(**{"dataset": "", "network": "", "count": 3, "epochs": 3, "batch_size": 4, "lr": 0.05, **changes})


def first(spec: Network, count: int) -> list[State]:
    seeds = (torch.Generator().manual_seed(index) for index in range(count))
    found = [networks.build(spec, SHAPE, draws).double() for draws in seeds]
    return [expert_training.start(one, torch.Generator().manual_seed(7 + index)) for index, one in enumerate(found)]


def function(spec: Network) -> FlatNetwork:
    return FlatNetwork(networks.build(spec, SHAPE, torch.Generator()))


def alone(spec: Network, settings: Experts, state: State) -> list[State]:
    gradient = expert_training.differentiate(function(spec), settings)
    return [*expert_training.steps(state, IMAGES, LABELS, settings, gradient)]


def together(spec: Network, settings: Experts, states: Sequence[State]) -> list[tuple[State, ...]]:
    gradient = experts_together.differentiate(function(spec), settings)
    return [*experts_together.steps(states, IMAGES, LABELS, settings, gradient)]


def near(a: Tensor, b: Tensor, within: float = 1e-10) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= within * max(1.0, float(b.norm())))


def same(one: State, other: State, within: float = 1e-10) -> bool:
    exact = torch.equal(one.draws, other.draws) and torch.equal(one.pending, other.pending)
    numbers = (one.epochs, one.steps) == (other.epochs, other.steps)
    return exact and numbers and all(near(getattr(one, k), getattr(other, k), within) for k in ("theta", "moments", "figures"))


@pytest.mark.parametrize("spec", NETWORKS)
@pytest.mark.parametrize("kind", KINDS_OF_TRAINING)
def test_each_is_the_same_as_alone(kind: str, spec: Network) -> None:
    settings = asked(**KINDS_OF_TRAINING[kind])
    within = 1e-8 if kind == "adam" else 1e-10  # it divides rounding by rounding where a gradient is 0, as before a norm
    states = first(spec, 3)
    found = together(spec, settings, states)
    for index, state in enumerate(states):
        expected = alone(spec, settings, state)
        assert len(found) == len(expected) == 9
        assert all(same(step[index], one, within) for step, one in zip(found, expected, strict=True))
    assert not near(found[-1][0].theta, found[-1][1].theta)


def test_those_that_were_interrupted_elsewhere_meet_again() -> None:
    """A kill between two checkpoints leaves one expert a step behind, or more."""
    settings, spec = asked(), NETWORKS[0]
    states = first(spec, 3)
    whole = [alone(spec, settings, state) for state in states]
    found = together(spec, settings, [whole[0][4], whole[1][1], states[2]])
    assert [max(state.steps for state in step) for step in found[:5]] == [5, 5, 5, 5, 5]
    assert [state.steps for state in found[-1]] == [9, 9, 9]
    assert all(same(state, steps[-1]) for state, steps in zip(found[-1], whole, strict=True))
    assert len(found) == 9


def test_one_that_diverges_ends_them_in_a_sentence() -> None:
    with pytest.raises(expert_training.DivergenceError, match="the expert diverged in epoch 1"):
        together(NETWORKS[0], asked(lr=1e30), first(NETWORKS[0], 2))


def test_it_is_one_graph() -> None:
    """What is compiled on a GPU is traced here; the last batch of an epoch is another shape."""
    settings, spec = asked(gradient_penalty=2.0, epochs=1), NETWORKS[0]
    torch._dynamo.reset()
    gradient = torch.compile(
        experts_together.differentiate(function(spec), settings), fullgraph=True, dynamic=False, backend="eager"
    )
    states = first(spec, 2)
    *_, found = experts_together.steps(states, IMAGES, LABELS, settings, gradient)
    assert all(same(one, alone(spec, settings, state)[-1]) for one, state in zip(found, states, strict=True))
