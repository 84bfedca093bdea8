"""One expert, step by step: its trajectory, its curves, and what of it can be stored on the way."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from src.ground.seeding import generator
from src.loops.stored import Stored
from src.maths import expert_training, experts_together, networks, scores, smoothness
from src.maths.derivatives import Backend, Logits
from src.maths.expert_training import Gradient, State
from src.maths.networks import FlatNetwork, ImageShape
from src.process import stopping
from src.process.arrays import Array
from src.settings.experts import Experts
from src.settings.networks import Network

Row = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """What the training of every expert takes, in whatever process."""

    settings: Experts
    spec: Network
    shape: ImageShape
    seed: int
    bfloat16: bool
    backend: Backend
    train: tuple[Array, Array]  # images (N, C, H, W) as networks read them, labels (N,)
    val: tuple[Array, Array]


@dataclass(frozen=True)
class Expert:
    """One expert on its way."""

    state: State
    thetas: tuple[Tensor, ...]  # theta*_0 .. of the finished epochs, (P,) each, on the CPU
    rows: tuple[Row, ...]  # of the finished epochs

    def stored(self, settings: Experts) -> Stored:
        """What its checkpoint holds; raises DivergenceError rather than keep numbers that are not finite."""
        if self.state.steps:
            expert_training.check(self.state, settings)
        tensors = {name: value for name, value in vars(self.state).items() if isinstance(value, Tensor)}
        facts = {"epochs": self.state.epochs, "steps": self.state.steps, "rows": self.rows}
        return {**tensors, "thetas": torch.stack(self.thetas)}, facts


def restored(stored: Stored, device: torch.device) -> Expert:
    """The expert that a checkpoint holds."""
    tensors, facts = stored
    moved = {name: tensors[name].to(device) for name in ("theta", "moments", "figures")}
    state = State(**moved, draws=tensors["draws"], pending=tensors["pending"], epochs=facts["epochs"], steps=facts["steps"])
    return Expert(state, tensors["thetas"].unbind(), tuple(facts["rows"]))


def flops(settings: Experts, spec: Network, shape: ImageShape, images: int) -> float:
    """Floating-point operations of training one expert."""
    network = networks.build(spec, shape, torch.Generator())
    image = torch.zeros(1, shape.channels, shape.size, shape.size)
    return expert_training.passes(settings, images) * networks.forward_flops(network, image)


def first(training: Training, index: int, device: torch.device) -> Expert:
    """One expert before its first step."""
    network = networks.build(training.spec, training.shape, generator(training.seed, "experts", index, "initialisation"))
    state = expert_training.start(network.to(device), generator(training.seed, "experts", index, "training"))
    return Expert(state, (state.theta.cpu(),), ())


def steps(training: Training, index: int, expert: Expert, device: torch.device) -> Iterator[Expert]:
    """One expert after each further step; where an epoch ends, its accuracy on the validation split is taken."""
    images, labels, val_images, val_labels = (torch.from_numpy(x).to(device) for x in (*training.train, *training.val))
    network, gradient = _derivative(
        expert_training.differentiate,
        *(training.spec, training.shape, training.settings, device, training.bfloat16, training.backend),
    )
    logits, gradient = stopping.interruptible(network), stopping.interruptible(gradient)
    chunk = expert_training.CHUNK if device.type == "cpu" else None
    for state in expert_training.steps(expert.state, images, labels, training.settings, gradient, chunk):
        expert = _after(index, expert, state, logits, val_images, val_labels)
        yield expert


def steps_together(
    training: Training, indices: Sequence[int], experts: Sequence[Expert], device: torch.device
) -> Iterator[tuple[Expert, ...]]:
    """Several experts after each further step of some of them, on a GPU; otherwise as `steps`."""
    images, labels, val_images, val_labels = (torch.from_numpy(x).to(device) for x in (*training.train, *training.val))
    network, gradient = _derivative(
        experts_together.differentiate,
        *(training.spec, training.shape, training.settings, device, training.bfloat16, training.backend),
    )
    logits, gradient = stopping.interruptible(network), stopping.interruptible(gradient)
    before = [expert.state for expert in experts]
    for states in experts_together.steps(before, images, labels, training.settings, gradient):
        experts = tuple(
            expert if state is expert.state else _after(index, expert, state, logits, val_images, val_labels)
            for index, expert, state in zip(indices, experts, states, strict=True)
        )
        yield experts


def _after(index: int, expert: Expert, state: State, logits: Logits, val_images: Tensor, val_labels: Tensor) -> Expert:
    """The expert in its next state; where an epoch has ended, with its snapshot and row."""
    if not state.between_epochs:
        return replace(expert, state=state)
    predicted = scores.predictions(functools.partial(logits, state.theta), val_images)
    row = _row(index, state, scores.accuracy(predicted, val_labels))
    return Expert(state, (*expert.thetas, state.theta.cpu()), (*expert.rows, row))


def _row(index: int, state: State, accuracy: float) -> Row:
    epoch = expert_training.epoch_of(state)
    figures = {"train_loss": epoch.train_loss, "gradient_penalty": epoch.penalty, "val_accuracy": accuracy}
    return {"expert": index, "epoch": epoch.number, **figures}


@functools.cache
def _derivative(
    differentiate: Callable[[FlatNetwork, Experts, bool, Backend], Gradient],
    spec: Network,
    shape: ImageShape,
    settings: Experts,
    device: torch.device,
    bfloat16: bool,
    backend: Backend,
) -> tuple[FlatNetwork, Gradient]:
    """The network as a function and the derivative of its steps; a process makes it once for all experts it trains."""
    network = FlatNetwork(networks.build(spec, shape, torch.Generator()).to(device))
    return network, differentiate(network, settings, bfloat16, backend)


def forget() -> None:
    """Let go of what this process keeps for all experts: it is of the device that it was made for."""
    _derivative.cache_clear()


def curves(training: Training, expert: Expert) -> tuple[Tensor, list[Row]]:
    """The trajectory (T + 1, P), and the rows of its epochs with how long each step was."""
    trajectory = torch.stack(expert.thetas)
    return trajectory, _with_steps(training, trajectory, expert.rows)


def _with_steps(training: Training, trajectory: Tensor, found: Sequence[Row]) -> list[Row]:
    network = FlatNetwork(networks.build(training.spec, training.shape, torch.Generator()))
    steps = smoothness.parameter_steps(trajectory).tolist(), smoothness.common_logit_steps(trajectory, network).tolist()
    rows = zip(found, *steps, strict=True)
    return [{**row, "parameter_step": step, "common_logit_step": common} for row, step, common in rows]


def curves_of(training: Training, index: int, trajectory: Tensor, device: torch.device) -> list[Row]:
    """The rows of a trajectory (T + 1, P) that is there: what it scores on the validation split, and how long each step was.

    What its training saw is not known: the loss is nan.
    """
    images, labels = (torch.from_numpy(x).to(device) for x in training.val)
    network = FlatNetwork(networks.build(training.spec, training.shape, torch.Generator()).to(device))
    rows = []
    for epoch, theta in enumerate(trajectory[1:].to(device), start=1):
        predicted = scores.predictions(functools.partial(network, theta), images)
        figures = {"train_loss": float("nan"), "gradient_penalty": 0.0, "val_accuracy": scores.accuracy(predicted, labels)}
        rows.append({"expert": index, "epoch": epoch, **figures})
    return _with_steps(training, trajectory, rows)


def digest(trajectory: Tensor) -> str:
    """Of the numbers of a trajectory (T + 1, P)."""
    return hashlib.sha256(str(tuple(trajectory.shape)).encode() + trajectory.contiguous().numpy().tobytes()).hexdigest()
