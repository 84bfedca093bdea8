"""Fresh students on a synthetic set, one or all at once, epoch by epoch, and what they then predict."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.ground import runtime
from src.ground.seeding import generator
from src.loops.stored import Stored
from src.maths import networks, protocol
from src.maths.derivatives import KEPT, Logits, Loss
from src.maths.networks import FlatNetwork, Shape
from src.maths.protocol import Gradients, ModuleStudent, Students, Way
from src.maths.retrieval import Predictor
from src.maths.tasks import CLASSES, Task
from src.process import stopping
from src.process.arrays import Array
from src.settings.networks import Network
from src.settings.protocols import Protocol

State = Callable[[], Stored]
Read = Callable[[str], tuple[Tensor, ...]]  # split -> images and labels, or what the task takes


@dataclass(frozen=True)
class Training:
    """What the training of every student takes, in whatever process."""

    settings: Protocol
    spec: Network
    shape: Shape
    seed: int
    way: Way
    images: Array  # (S, C, H, W), synthetic; or tuples (S, D)
    labels: Array  # (S,) classes or (S, K) probabilities; or what the task takes
    syn_lr: float | tuple[float, ...]  # of tuples one a modality
    splits: tuple[str, ...]  # to predict
    watched: str | None  # the split that chooses each student's best epoch; None keeps the last one
    read: Read  # a split's images as networks read them (N, C, H, W), and labels (N,)
    task: Task = CLASSES


def forward_flops(spec: Network, shape: Shape) -> int:
    """Floating-point operations of one image's forward pass."""
    network = networks.build(spec, shape, torch.Generator())
    return networks.forward_flops(network, torch.zeros(1, *shape.batch))


def start(training: Training, group: int, device: torch.device, stored: Stored | None = None) -> Points | Modules:
    """The students of a group, one or all: before their first epoch, or as they were stored."""
    kind = Modules if training.spec.keeps_statistics else Points
    return kind(training, group, device, stored)


class Points:
    """One student or all as points theta in parameter space."""

    def __init__(self, training: Training, group: int, device: torch.device, stored: Stored | None):
        self._training, self._device = training, device
        self._network, self._gradients, self._parts = _derivative(
            training.spec, training.shape, device, training.way, training.task.loss, runtime.numerics()
        )
        self._students = _resumed(stored, device) if stored else _first(training, group, device)

    def epochs(self, until: int) -> Iterator[None]:
        training = self._training
        watch = _watch(training, self._device)
        score = None if watch is None else lambda thetas: watch(self._functions(thetas))
        images, labels = _synthetic(training, self._device)
        given = (images, labels, self._rate(), training.settings, self._gradients, score)
        for students in protocol.epochs(self._students, *given, until):
            self._students = students
            yield

    def state(self) -> State:
        return functools.partial(_stored, self._students)

    def predictors(self) -> list[Predictor]:
        return self._functions(protocol.chosen(self._students))

    def result(self) -> Tensor:
        """Parameters (P,) of the last student."""
        return protocol.chosen(self._students)[-1].cpu()

    def _rate(self) -> float | Tensor:
        """The learning rate, of tuples one for each parameter (P,)."""
        rates = self._training.syn_lr
        if isinstance(rates, float):
            return rates
        return networks.spread(self._students.thetas.new_tensor(rates), self._parts)

    def _functions(self, thetas: Tensor) -> list[Predictor]:
        return [functools.partial(self._network, theta) for theta in thetas]


class Modules:
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
        assert isinstance(training.syn_lr, float)  # encoders have no running statistics
        return self._student.epochs(images, labels, training.syn_lr, training.way.bfloat16, score, until)

    def state(self) -> State:
        """Copied at once, as training writes to its tensors."""
        stored = self._student.state(), {"epochs": self._student.finished}
        return lambda: stored

    def result(self) -> nn.Module:
        return self._student.module.cpu()

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
    """Accuracies (g,), or the task's figures that count, on the watched split, if there is one."""
    watched = training.watched
    if watched is None:
        return None
    (_, labels, *_), task = training.read(watched), training.task

    def figures(predictors: Sequence[Predictor]) -> Tensor:
        measured = predict(training, watched, predictors, device).cpu()
        return torch.tensor([task.figures(one, labels)[task.headline] for one in measured], dtype=torch.float64)

    return figures


@functools.lru_cache(maxsize=KEPT)
def _derivative(
    spec: Network,
    shape: Shape,
    device: torch.device,
    way: Way,
    loss: Loss,
    numerics: tuple[int, bool, bool],  # a part of the key
) -> tuple[Logits, Gradients, tuple[int, ...]]:
    """The network as a function, its derivative and its parts; a process compiles it once for all students it trains."""
    network = FlatNetwork(networks.build(spec, shape, torch.Generator()).to(device))
    gradients = protocol.derivative(network, way, loss)
    return stopping.interruptible(network), stopping.interruptible(gradients), network.parts


def forget() -> None:
    """Let go of what this process keeps for all students: it is of the device that it was made for."""
    _derivative.cache_clear()


def predict(training: Training, split: str, predictors: Sequence[Predictor], device: torch.device) -> Tensor:
    """What the task makes its figures from, of every student: predicted classes (g, N)."""
    real = [tensor.to(device) for tensor in training.read(split)]
    return torch.stack([training.task.measured(predictor, real) for predictor in predictors])
