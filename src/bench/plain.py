"""The plain way, as public code for trajectory matching works: eager float32, one graph, torch's own optimisers and loaders.

It is a baseline to measure against, written here for that purpose; nothing else in the repository uses it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from src.bench import measure
from src.bench.problem import Problem, build, matching_problem, real_images
from src.bench.settings import (
    AUGMENTATION,
    EXPERT_LR,
    EXPERT_MOMENTUM,
    STUDENT_DECAY,
    STUDENT_LR,
    STUDENT_MOMENTUM,
    EvaluateSetting,
    ExpertsSetting,
    MatchingSetting,
)
from src.ground.seeding import generator
from src.maths import augmentation
from src.maths.derivatives import PASSES
from src.store import cost

PLAIN_PASSES = PASSES - 3  # a step's work in forward passes: forward 1, backward 2, double backward 6; no second forward pass


def matching_loss(given: Problem, images: Tensor, syn_lr: Tensor, iteration: int) -> Tensor:
    """The matching loss, (), with the graph of all inner steps on it (MTT, algorithm 1)."""
    theta = given.snapshots[0].clone().requires_grad_()
    velocity = torch.zeros_like(theta)
    visited = [theta]
    for step in given.steps(iteration):
        batch = augmentation.apply(step.draw, images[step.index])
        loss = F.cross_entropy(given.network(theta, batch), given.labels[step.index])
        (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = given.rule.momentum * velocity + slope
        theta = theta - syn_lr * velocity
        visited.append(theta)
    return torch.stack([point.distance(visited[point.step]) for point in given.way_points]).sum()


def image_gradient(given: Problem) -> Tensor:
    """The gradient of the first iteration's matching loss with respect to the images, (S, C, H, W)."""
    images = given.images.clone().requires_grad_()
    syn_lr = torch.tensor(given.settings.lr_init).to(images)
    (found,) = torch.autograd.grad(matching_loss(given, images, syn_lr, 0), images)
    return found


def matching(setting: MatchingSetting) -> dict[str, Any]:
    """Seconds of an iteration of the outer loop, and the matching losses it saw."""
    device = measure.device_of(setting.device)
    given = matching_problem(setting, device)
    images = given.images.clone().requires_grad_()
    syn_lr = torch.tensor(given.settings.lr_init, device=device, requires_grad=True)
    momentum = given.settings.outer_momentum
    optimisers = [
        torch.optim.SGD([images], lr=given.settings.lr_img, momentum=momentum),
        torch.optim.SGD([syn_lr], lr=given.settings.lr_lr, momentum=momentum),
    ]
    losses: list[float] = []

    def iterate() -> None:
        loss = matching_loss(given, images, syn_lr, len(losses))
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        losses.append(loss.item())

    return measure.iterations(iterate, setting.iterations, device) | {"matching_losses": losses}


def experts(setting: ExpertsSetting) -> dict[str, Any]:
    """Real images a second of an expert's training, after two steps to warm up."""
    device = measure.device_of(setting.device)
    labels = torch.arange(setting.images) % setting.classes
    data = TensorDataset(real_images(setting, labels, "real"), labels)
    module = build(setting, 0).to(device)
    optimiser = torch.optim.SGD(module.parameters(), lr=EXPERT_LR, momentum=EXPERT_MOMENTUM)
    draws = generator(setting.seed, "bench", "training")

    def epoch(data: Dataset[tuple[Tensor, ...]]) -> None:
        for batch, targets in DataLoader(data, batch_size=setting.batch_size, shuffle=True, generator=draws):
            _expert_step(module, optimiser, batch.to(device), targets.to(device), setting, draws)

    epoch(Subset(data, range(min(setting.images, 2 * setting.batch_size))))
    spent = cost.seconds(lambda: epoch(data), device)
    return {"seconds": spent, "images_per_second": setting.images / spent, **measure.surroundings(device)}


def _expert_step(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    setting: ExpertsSetting,
    draws: torch.Generator,
) -> None:
    """One step on a batch (B, C, H, W), with its accuracy, which public code counts in every step."""
    logits = module(_augmented(images, draws))
    loss = F.cross_entropy(logits, labels)
    if setting.gradient_penalty:
        loss = loss + setting.gradient_penalty * _penalty(module, images)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    (logits.argmax(dim=1) == labels).sum().item()


def _penalty(module: nn.Module, images: Tensor) -> Tensor:
    """Mean of (norm - 1)^2 over pixels, of the gradient of the summed logits, its norm over the channels (AST's code)."""
    images = images.clone().requires_grad_()
    logits = module(images)
    (slope,) = torch.autograd.grad(logits, images, grad_outputs=torch.ones_like(logits), create_graph=True)
    penalty: Tensor = ((slope.norm(2, dim=1) - 1) ** 2).mean()
    return penalty


def evaluate(setting: EvaluateSetting) -> dict[str, Any]:
    """Seconds that the training of all students takes, one after the other, after an epoch of one to warm up."""
    device = measure.device_of(setting.device)
    labels = torch.arange(setting.classes).repeat_interleave(setting.ipc)
    images, targets = real_images(setting, labels, "synthetic").to(device), labels.to(device)
    _train_student(setting, 0, 1, images, targets)

    def all_students() -> None:
        for student in range(setting.students):
            _train_student(setting, student, setting.epochs, images, targets)

    return {"seconds": cost.seconds(all_students, device), **measure.surroundings(device)}


def _train_student(setting: EvaluateSetting, student: int, epochs: int, images: Tensor, labels: Tensor) -> None:
    module = build(setting, student).to(images.device)
    optimiser = torch.optim.SGD(module.parameters(), lr=STUDENT_LR, momentum=STUDENT_MOMENTUM, weight_decay=STUDENT_DECAY)
    draws = generator(setting.seed, "bench", "student", student)
    for _ in range(epochs):
        for index in torch.randperm(len(labels), generator=draws).split(setting.batch_size):
            index = index.to(images.device)
            loss = F.cross_entropy(module(_augmented(images[index], draws)), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def _augmented(images: Tensor, draws: torch.Generator) -> Tensor:
    drawn = augmentation.draw(AUGMENTATION, len(images), draws)
    return augmentation.apply(drawn.to(images.device, images.dtype), images)
