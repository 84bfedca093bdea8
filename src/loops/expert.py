"""One expert, step by step: its trajectory, its curves, and what of it can be stored on the way."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from src.ground import runtime
from src.ground.seeding import generator
from src.loops.stored import Stored
from src.maths import expert_training, experts_together, networks, smoothness, tasks
from src.maths.derivatives import KEPT, Backend, Logits, Loss
from src.maths.expert_training import Gradient, State
from src.maths.networks import FlatNetwork, ImageShape, Shape
from src.maths.retrieval import Predictor
from src.maths.tasks import Task
from src.process import stopping
from src.process.arrays import Array
from src.settings.experts import Experts
from src.settings.networks import Network

Row = dict[str, Any]
Differentiate = Callable[[FlatNetwork, Experts, bool, Backend, Loss], Gradient]


@dataclass(frozen=True)
class Training:
    """What the training of every expert takes, in whatever process."""

    settings: Experts
    spec: Network
    shape: Shape
    seed: int
    bfloat16: bool
    backend: Backend
    train: tuple[Array, ...]  # images (N, C, H, W) as networks read them, labels (N,); or what the task takes
    val: tuple[Array, ...]

    @property
    def task(self) -> Task:
        return tasks.of(self.shape, self.settings.contrast)


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


def flops(settings: Experts, spec: Network, shape: Shape, images: int) -> float:
    """Floating-point operations of training one expert."""
    network = networks.build(spec, shape, torch.Generator())
    image = torch.zeros(1, *shape.batch)
    return expert_training.passes(settings, images) * networks.forward_flops(network, image)


def first(training: Training, index: int, device: torch.device) -> Expert:
    """One expert before its first step."""
    network = networks.build(training.spec, training.shape, generator(training.seed, "experts", index, "initialisation"))
    state = expert_training.start(network.to(device), generator(training.seed, "experts", index, "training"))
    return Expert(state, (state.theta.cpu(),), ())


def steps(training: Training, index: int, expert: Expert, device: torch.device) -> Iterator[Expert]:
    """One expert after each further step; where an epoch ends, its accuracy on the validation split is taken."""
    train, val, logits, gradient = _at_work(training, expert_training.differentiate, device)
    chunk = expert_training.CHUNK if device.type == "cpu" and training.task.splits_batches else None
    for state in expert_training.steps(expert.state, train[0], train[1], training.settings, gradient, chunk):
        expert = _after(index, expert, state, logits, training.task, val)
        yield expert


def steps_together(
    training: Training, indices: Sequence[int], experts: Sequence[Expert], device: torch.device
) -> Iterator[tuple[Expert, ...]]:
    """Several experts after each further step of some of them, on a GPU; otherwise as `steps`."""
    train, val, logits, gradient = _at_work(training, experts_together.differentiate, device)
    before = [expert.state for expert in experts]
    for states in experts_together.steps(before, train[0], train[1], training.settings, gradient):
        experts = tuple(
            expert if state is expert.state else _after(index, expert, state, logits, training.task, val)
            for index, expert, state in zip(indices, experts, states, strict=True)
        )
        yield experts


def _at_work(
    training: Training, differentiate: Differentiate, device: torch.device
) -> tuple[list[Tensor], list[Tensor], Logits, Gradient]:
    """Both splits on the device, the network as a function, and the derivative of its steps on what an index takes of them."""
    train, val = ([torch.from_numpy(x).to(device) for x in split] for split in (training.train, training.val))
    task, settings = training.task, training.settings
    network, found = _derivative(
        differentiate, training.spec, training.shape, settings, device, training.bfloat16, training.backend, task.loss,
        runtime.numerics(),
    )  # fmt: skip

    def gradient(theta: Tensor, augmented: Tensor, plain: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return found(theta, task.gathered(augmented, train), task.gathered(plain, train), *rest)

    return train, val, stopping.interruptible(network), stopping.interruptible(gradient)


def _after(index: int, expert: Expert, state: State, logits: Logits, task: Task, val: list[Tensor]) -> Expert:
    """The expert in its next state; where an epoch has ended, with its snapshot and row."""
    if not state.between_epochs:
        return replace(expert, state=state)
    row = _row(index, state, task, _figure(task, functools.partial(logits, state.theta), val))
    return Expert(state, (*expert.thetas, state.theta.cpu()), (*expert.rows, row))


def _figure(task: Task, predict: Predictor, val: list[Tensor]) -> float:
    """The one that counts, on the validation split."""
    return task.figures(task.measured(predict, val), val[1])[task.headline]


def _row(index: int, state: State, task: Task, figure: float) -> Row:
    epoch = expert_training.epoch_of(state)
    figures = {"train_loss": epoch.train_loss, "gradient_penalty": epoch.penalty, f"val_{task.headline}": figure}
    return {"expert": index, "epoch": epoch.number, **figures}


@functools.lru_cache(maxsize=KEPT)
def _derivative(
    differentiate: Differentiate,
    spec: Network,
    shape: Shape,
    settings: Experts,
    device: torch.device,
    bfloat16: bool,
    backend: Backend,
    loss: Loss,
    numerics: tuple[int, bool, bool],  # a part of the key
) -> tuple[FlatNetwork, Gradient]:
    """The network as a function and the derivative of its steps; a process makes it once for all experts it trains."""
    network = FlatNetwork(networks.build(spec, shape, torch.Generator()).to(device))
    return network, differentiate(network, settings, bfloat16, backend, loss)


def forget() -> None:
    """Let go of what this process keeps for all experts: it is of the device that it was made for."""
    _derivative.cache_clear()


def curves(training: Training, expert: Expert) -> tuple[Tensor, list[Row]]:
    """The trajectory (T + 1, P), and the rows of its epochs with how long each step was."""
    trajectory = torch.stack(expert.thetas)
    return trajectory, _with_steps(training, trajectory, expert.rows)


def _with_steps(training: Training, trajectory: Tensor, found: Sequence[Row]) -> list[Row]:
    """Encoders have no logits that could move alike."""
    steps = {"parameter_step": smoothness.parameter_steps(trajectory).tolist()}
    if isinstance(training.shape, ImageShape):
        network = FlatNetwork(networks.build(training.spec, training.shape, torch.Generator()))
        steps["common_logit_step"] = smoothness.common_logit_steps(trajectory, network).tolist()
    return [{**row, **{name: values[place] for name, values in steps.items()}} for place, row in enumerate(found)]


def curves_of(training: Training, index: int, trajectory: Tensor, device: torch.device) -> list[Row]:
    """The rows of a trajectory (T + 1, P) that is there: what it scores on the validation split, and how long each step was.

    What its training saw is not known: the loss is nan.
    """
    val, task = [torch.from_numpy(x).to(device) for x in training.val], training.task
    network = FlatNetwork(networks.build(training.spec, training.shape, torch.Generator()).to(device))
    rows = []
    for epoch, theta in enumerate(trajectory[1:].to(device), start=1):
        figure = _figure(task, functools.partial(network, theta), val)
        figures = {"train_loss": float("nan"), "gradient_penalty": 0.0, f"val_{task.headline}": figure}
        rows.append({"expert": index, "epoch": epoch, **figures})
    return _with_steps(training, trajectory, rows)


def digest(trajectory: Tensor) -> str:
    """Of the numbers of a trajectory (T + 1, P)."""
    return hashlib.sha256(str(tuple(trajectory.shape)).encode() + trajectory.contiguous().numpy().tobytes()).hexdigest()
