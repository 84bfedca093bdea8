"""Training of fresh students on a synthetic set, all at once or each in a process of its own, and what they then predict."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.ground.seeding import generator
from src.ground.settings import Network, Protocol
from src.io import artifacts, stopping
from src.io.checkpoints import Stored, Work
from src.io.progress import Advance
from src.io.workers import Array
from src.maths import networks, protocol, scores
from src.maths.derivatives import Logits, module_flops
from src.maths.networks import FlatNetwork, ImageShape
from src.maths.protocol import Gradients, Students, Way

Keep = Callable[[Callable[[], Stored]], None]  # called after each epoch with what gives the state to store
Predictor = Callable[[Tensor], Tensor]  # images (B, C, H, W) -> logits (B, K)


@dataclass(frozen=True)
class Training:
    """What the training of every student takes, in whatever process."""

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
    work: Work | None  # by which what is done survives an interruption


def forward_flops(spec: Network, shape: ImageShape) -> int:
    """Floating-point operations of one image's forward pass."""
    network = networks.build(spec, shape, torch.Generator())
    return module_flops(network, torch.zeros(1, shape.channels, shape.size, shape.size))


def epochs_before(training: Training, groups: int) -> int:
    """Epochs of all students that earlier processes finished."""
    if training.work is None:
        return 0
    return sum(training.work.checkpoint(group).facts().get("epochs", 0) for group in range(groups))


def train_group(training: Training, index: int, device: torch.device, advance: Advance) -> dict[str, Array]:
    """Train one student or all, wherever joblib puts them; the classes (g, N) they then predict of each split.

    Students of every network have the same seeds, each network's parameters its own shapes. What an earlier process finished
    is kept, and what it began is continued.
    """
    if training.work is None:
        return _predicted(training, index, device, advance, None, lambda state: None)
    checkpoint = training.work.checkpoint(index)
    stored = checkpoint.load()
    if stored is not None and "thetas" not in stored[0]:
        return {split: stored[0][split].numpy() for split in training.splits}
    with checkpoint.kept() as keep:
        predicted = _predicted(training, index, device, advance, stored, keep)
    tensors = {split: torch.from_numpy(classes) for split, classes in predicted.items()}
    checkpoint.save(tensors, {"epochs": training.settings.epochs})
    return predicted


def _predicted(
    training: Training, index: int, device: torch.device, advance: Advance, stored: Stored | None, keep: Keep
) -> dict[str, Array]:
    if training.spec.keeps_statistics:
        predictors = _train_module(training, index, device, advance)
    else:
        predictors = _train_flat(training, index, device, advance, stored, keep)
    return {split: _predict(training, split, predictors, device).cpu().numpy() for split in training.splits}


def _fresh(training: Training, student: int, device: torch.device) -> nn.Module:
    draws = generator(training.seed, "evaluate", student, "initialisation")
    return networks.build(training.spec, training.shape, draws).to(device)


def _train_flat(
    training: Training, index: int, device: torch.device, advance: Advance, stored: Stored | None, keep: Keep
) -> list[Predictor]:
    """Students as points theta in parameter space."""
    network, gradients = _derivative(training.spec, training.shape, device, training.way)

    def predictors(thetas: Tensor) -> list[Predictor]:
        return [functools.partial(network, theta) for theta in thetas]

    watch = _watch(training, device)
    score = None if watch is None else lambda thetas: watch(predictors(thetas))
    images, labels = _synthetic(training, device)
    students = _resumed(stored, device) if stored else _first(training, index, device)
    settings, syn_lr = training.settings, training.syn_lr
    for later in protocol.epochs(students, images, labels, syn_lr, settings, gradients, score):
        students = later
        keep(functools.partial(_stored, students))
        advance()
    return predictors(protocol.chosen(students))


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


def _train_module(training: Training, index: int, device: torch.device, advance: Advance) -> list[Predictor]:
    """A student with running statistics beside its parameters; interrupted, it starts again."""
    watch = _watch(training, device)
    score = None if watch is None else lambda student: watch([student]).item()
    images, labels = _synthetic(training, device)
    student, draws = _fresh(training, index, device), generator(training.seed, "evaluate", index, "training")

    def on_epoch() -> None:
        stopping.check()
        advance()

    settings, syn_lr, bfloat16 = training.settings, training.syn_lr, training.way.bfloat16
    protocol.train_module(student, images, labels, syn_lr, settings, draws, on_epoch, bfloat16, score)
    return [student]


def _synthetic(training: Training, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(training.images).to(device), torch.from_numpy(training.labels).to(device)


def _watch(training: Training, device: torch.device) -> Callable[[Sequence[Predictor]], Tensor] | None:
    """Accuracies (g,) on the watched split, if there is one."""
    watched = training.watched
    if watched is None:
        return None
    labels = artifacts.load_split(training.dataset, watched).labels

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
    images = artifacts.load_inputs(training.dataset, split)[0].to(device)
    return torch.stack([scores.predictions(predictor, images) for predictor in predictors])
