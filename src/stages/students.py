"""Training of fresh students on a synthetic set, all at once or each in a process of its own, and what they then predict."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.ground.seeding import generator
from src.ground.settings import Network, Protocol
from src.io import artifacts
from src.io.progress import Advance
from src.io.workers import Array
from src.maths import networks, protocol, scores
from src.maths.derivatives import module_flops
from src.maths.networks import FlatNetwork, ImageShape
from src.maths.protocol import Gradients, Way

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


def forward_flops(spec: Network, shape: ImageShape) -> int:
    """Floating-point operations of one image's forward pass."""
    network = networks.build(spec, shape, torch.Generator())
    return module_flops(network, torch.zeros(1, shape.channels, shape.size, shape.size))


def train_group(training: Training, index: int, device: torch.device, advance: Advance) -> dict[str, Array]:
    """Train one student or all, wherever joblib puts them; the classes (g, N) they then predict of each split.

    Students of every network have the same seeds, each network's parameters its own shapes.
    """
    seed, shape = training.seed, training.shape
    group = range(training.settings.students) if training.way.together else (index,)
    fresh = [networks.build(training.spec, shape, generator(seed, "evaluate", s, "initialisation")).to(device) for s in group]
    draws = [generator(seed, "evaluate", student, "training") for student in group]
    train = _train_modules if training.spec.keeps_statistics else _train_flat
    predictors = train(training, fresh, draws, advance, device)
    return {split: _predict(training, split, predictors, device).cpu().numpy() for split in training.splits}


def _train_flat(
    training: Training, fresh: Sequence[nn.Module], draws: Sequence[torch.Generator], advance: Advance, device: torch.device
) -> list[Predictor]:
    """Students as points theta in parameter space."""
    thetas = torch.stack([networks.flatten(student) for student in fresh])  # (g, P)
    network, gradients = _derivative(training.spec, training.shape, device, training.way)

    def predictors(thetas: Tensor) -> list[Predictor]:
        return [functools.partial(network, theta) for theta in thetas]

    watch = _watch(training, device)
    score = None if watch is None else lambda thetas: watch(predictors(thetas))
    images, labels = _synthetic(training, device)
    settings, syn_lr = training.settings, training.syn_lr
    trained = protocol.train_students(network, thetas, images, labels, syn_lr, settings, draws, advance, gradients, score)
    return predictors(trained)


def _train_modules(
    training: Training, fresh: Sequence[nn.Module], draws: Sequence[torch.Generator], advance: Advance, device: torch.device
) -> list[Predictor]:
    """Students with running statistics beside their parameters, one by one."""
    watch = _watch(training, device)
    score = None if watch is None else lambda student: watch([student]).item()
    images, labels = _synthetic(training, device)
    settings, syn_lr, bfloat16 = training.settings, training.syn_lr, training.way.bfloat16
    for student, draw in zip(fresh, draws, strict=True):
        protocol.train_module(student, images, labels, syn_lr, settings, draw, advance, bfloat16, score)
    return list(fresh)


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
def _derivative(spec: Network, shape: ImageShape, device: torch.device, way: Way) -> tuple[FlatNetwork, Gradients]:
    """The network as a function and its derivative; a process compiles it once for all students it trains."""
    network = FlatNetwork(networks.build(spec, shape, torch.Generator()).to(device))
    return network, protocol.derivative(network, way)


def _predict(training: Training, split: str, predictors: Sequence[Predictor], device: torch.device) -> Tensor:
    """Predicted classes (g, N) of every student."""
    images = artifacts.load_inputs(training.dataset, split)[0].to(device)
    return torch.stack([scores.predictions(predictor, images) for predictor in predictors])
