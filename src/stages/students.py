"""Training of fresh students on a synthetic set, all at once or each in a process of its own, and what they then predict."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.ground.seeding import generator
from src.maths import networks, protocol, scores
from src.maths.derivatives import Logits
from src.maths.networks import FlatNetwork, ImageShape
from src.maths.protocol import Gradients, ModuleStudent, Students, Way
from src.process import stopping, workers
from src.process.progress import Advance, say
from src.process.workers import Array
from src.settings.networks import Network
from src.settings.protocols import Protocol
from src.settings.runtime import Runtime
from src.store.checkpoints import Stored, Work
from src.store.cost import Cost
from src.store.store import Store

State = Callable[[], Stored]
Predicted = dict[str, Array]  # split -> classes (g, N)
Predictor = Callable[[Tensor], Tensor]  # images (B, C, H, W) -> logits (B, K)


@dataclass(frozen=True)
class Training:
    """What the training of every student takes, in whatever process."""

    store: Store
    dataset: str
    settings: Protocol
    spec: Network
    shape: ImageShape
    seed: int
    way: Way
    images: Array  # (S, C, H, W), synthetic
    labels: Array  # (S,) classes or (S, K) probabilities
    syn_lr: float
    splits: tuple[str, ...]  # to predict
    watched: str | None  # the split that chooses each student's best epoch; None keeps the last one
    work: Work  # by which what is done survives an interruption, and goes from one process to another


def forward_flops(spec: Network, shape: ImageShape) -> int:
    """Floating-point operations of one image's forward pass."""
    network = networks.build(spec, shape, torch.Generator())
    return networks.forward_flops(network, torch.zeros(1, shape.channels, shape.size, shape.size))


def parts(groups: int, processes: int) -> int:
    """Equal parts of each group's training, by which so many processes end at the same time.

    Five students in two processes would be three rounds; ten halves are five, two and a half of a student's.
    """
    return processes // math.gcd(groups, processes)


def epochs_before(training: Training, groups: int) -> int:
    """Epochs of all students that earlier processes finished."""
    return sum(training.work.checkpoint(group).facts().get("epochs", 0) for group in range(groups))


def train_all(training: Training, groups: int, runtime: Runtime, processes: int, title: str) -> tuple[list[Predicted], Cost]:
    """What each group's students predict after their training, and the cost of other processes, earlier ones included."""
    pieces = parts(groups, processes) * groups
    units, before = groups * training.settings.epochs, epochs_before(training, groups)
    if before:
        say(f"{title}: {'kept from before' if before == units else f'resumed at {before} of {units} epochs'}")
    part = functools.partial(_train_part, training, groups, pieces)
    seconds = training.work.seconds_spent(groups) / processes
    found, peak = workers.each(part, pieces, runtime, processes, title, units, before)
    return found[-groups:], Cost(seconds, peak)


def _train_part(
    training: Training, groups: int, pieces: int, index: int, device: torch.device, advance: Advance
) -> Predicted | None:
    """A part of a group's training, wherever joblib puts it; after the last one what its students predict.

    Pieces come as the first parts of all groups, then the second ones. A part begins where the checkpoint is: that is how one
    process hands a group to another, and how work that was interrupted goes on.
    """
    part, group = divmod(index, groups)
    until = training.settings.epochs * (part + 1) * groups // pieces
    checkpoint = training.work.checkpoint(group)
    with checkpoint.alone():  # the part before may still be in the making
        stored = checkpoint.load()
        if stored is not None and stored[1].get("predicted"):
            return {split: stored[0][split].numpy() for split in training.splits}
        if stored is not None and stored[1]["epochs"] >= until < training.settings.epochs:
            return None
        start = _Modules if training.spec.keeps_statistics else _Points
        with checkpoint.kept() as keep:
            students = start(training, group, device, stored)
            for _ in students.epochs(until):
                keep(students.state())
                advance()
            if until < training.settings.epochs:
                checkpoint.save(*students.state()())
                return None
            predicted = {split: _predict(training, split, students.predictors(), device).cpu() for split in training.splits}
        checkpoint.save(predicted, {"epochs": until, "predicted": True})
    return {split: classes.numpy() for split, classes in predicted.items()}


class _Points:
    """One student or all as points theta in parameter space."""

    def __init__(self, training: Training, group: int, device: torch.device, stored: Stored | None):
        self._training, self._device = training, device
        self._network, self._gradients = _derivative(training.spec, training.shape, device, training.way)
        self._students = _resumed(stored, device) if stored else _first(training, group, device)

    def epochs(self, until: int) -> Iterator[None]:
        training = self._training
        watch = _watch(training, self._device)
        score = None if watch is None else lambda thetas: watch(self._functions(thetas))
        images, labels = _synthetic(training, self._device)
        given = (images, labels, training.syn_lr, training.settings, self._gradients, score)
        for students in protocol.epochs(self._students, *given, until):
            self._students = students
            yield

    def state(self) -> State:
        return functools.partial(_stored, self._students)

    def predictors(self) -> list[Predictor]:
        return self._functions(protocol.chosen(self._students))

    def _functions(self, thetas: Tensor) -> list[Predictor]:
        return [functools.partial(self._network, theta) for theta in thetas]


class _Modules:
    """One student with running statistics beside its parameters."""

    def __init__(self, training: Training, group: int, device: torch.device, stored: Stored | None):
        self._training, self._device = training, device
        module, draws = _fresh(training, group, device), generator(training.seed, "evaluate", group, "training")
        module.register_forward_pre_hook(lambda *_: stopping.check())
        self._student = ModuleStudent(module, training.settings, draws)
        if stored is not None:
            self._student.resume(stored[0], stored[1]["epochs"])

    def epochs(self, until: int) -> Iterator[None]:
        training = self._training
        watch = _watch(training, self._device)
        score = None if watch is None else lambda module: watch([module]).item()
        images, labels = _synthetic(training, self._device)
        return self._student.epochs(images, labels, training.syn_lr, training.way.bfloat16, score, until)

    def state(self) -> State:
        """Copied at once, as training writes to its tensors."""
        stored = self._student.state(), {"epochs": self._student.finished}
        return lambda: stored

    def predictors(self) -> list[Predictor]:
        return [self._student.module]


def _fresh(training: Training, student: int, device: torch.device) -> nn.Module:
    draws = generator(training.seed, "evaluate", student, "initialisation")
    return networks.build(training.spec, training.shape, draws).to(device)


def _first(training: Training, index: int, device: torch.device) -> Students:
    """One student or all before their first epoch."""
    group = range(training.settings.students) if training.way.together else (index,)
    thetas = torch.stack([networks.flatten(_fresh(training, student, device)) for student in group])  # (g, P)
    draws = [generator(training.seed, "evaluate", student, "training") for student in group]
    return protocol.start(thetas, draws, choosing=training.watched is not None)


def _stored(students: Students) -> Stored:
    tensors = {name: value for name, value in vars(students).items() if isinstance(value, Tensor)}
    return tensors, {"epochs": students.epochs}


def _resumed(stored: Stored, device: torch.device) -> Students:
    """Generators' states and accuracies stay on the CPU."""
    tensors, facts = stored
    moved = {name: x if name in ("draws", "record") else x.to(device) for name, x in tensors.items()}
    return Students(**moved, epochs=facts["epochs"])


def _synthetic(training: Training, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(training.images).to(device), torch.from_numpy(training.labels).to(device)


def _watch(training: Training, device: torch.device) -> Callable[[Sequence[Predictor]], Tensor] | None:
    """Accuracies (g,) on the watched split, if there is one."""
    watched = training.watched
    if watched is None:
        return None
    labels = training.store.load_split(training.dataset, watched).labels

    def accuracies(predictors: Sequence[Predictor]) -> Tensor:
        predicted = _predict(training, watched, predictors, device).cpu()
        return torch.tensor([scores.accuracy(one, labels) for one in predicted], dtype=torch.float64)

    return accuracies


@functools.cache
def _derivative(spec: Network, shape: ImageShape, device: torch.device, way: Way) -> tuple[Logits, Gradients]:
    """The network as a function and its derivative; a process compiles it once for all students it trains."""
    network = FlatNetwork(networks.build(spec, shape, torch.Generator()).to(device))
    return stopping.interruptible(network), stopping.interruptible(protocol.derivative(network, way))


def _predict(training: Training, split: str, predictors: Sequence[Predictor], device: torch.device) -> Tensor:
    """Predicted classes (g, N) of every student."""
    images = training.store.load_inputs(training.dataset, split)[0].to(device)
    return torch.stack([scores.predictions(predictor, images) for predictor in predictors])
