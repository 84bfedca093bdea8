"""Files as MTT's code writes them, by a network built as its networks.py builds one: features, then the classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.maths.networks import ImageShape
from src.settings.networks import ConvNet

NORMS = {
    "instance": lambda width, side: nn.GroupNorm(width, width, affine=True),
    "group": lambda width, side: nn.GroupNorm(4, width, affine=True),
    "pixels": lambda width, side: nn.LayerNorm([width, side, side]),  # MTT's layernorm, which no network here has
}


class TheirConvNet(nn.Module):
    """Blocks of convolution, norm, ReLU in place and average pooling; grey images are padded by 3 pixels."""

    def __init__(self, channels: int, classes: int, width: int, depth: int, size: int, norm: str = "instance") -> None:
        super().__init__()
        side = 32 if size == 28 else size
        blocks: list[nn.Module] = []
        for number in range(depth):
            padding = 3 if channels == 1 and number == 0 else 1
            blocks.append(nn.Conv2d(width if number else channels, width, kernel_size=3, padding=padding))
            if norm != "none":
                blocks.append(NORMS[norm](width, side))
            blocks += [nn.ReLU(inplace=True), nn.AvgPool2d(kernel_size=2, stride=2)]
            side //= 2
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * side * side, classes)

    def forward(self, images: Tensor) -> Tensor:
        read = self.features(images)
        logits: Tensor = self.classifier(read.view(len(read), -1))
        return logits


def network(spec: ConvNet, shape: ImageShape, seed: int = 0, norm: str | None = None) -> TheirConvNet:
    """With the norm's parameters moved away from one and zero, so that an exchange of the two would be seen."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = TheirConvNet(shape.channels, shape.classes, spec.width, spec.depth, shape.size, norm or spec.norm)
        with torch.no_grad():
            for parameter in found.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return found


def trained(module: nn.Module, shape: ImageShape, epochs: int, copies: bool = True) -> list[list[Tensor]]:
    """Snapshots of a training on noise; without `copies` those of a CPU, where `p.detach().cpu()` is no copy."""
    draw = torch.Generator().manual_seed(7)
    images = torch.randn(6, shape.channels, shape.size, shape.size, generator=draw)
    labels = torch.randint(shape.classes, (6,), generator=draw)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05)
    snapshots = [snapshot(module, copies)]
    for _ in range(epochs):
        optimiser.zero_grad()
        F.cross_entropy(module(images), labels).backward()
        optimiser.step()
        snapshots.append(snapshot(module, copies))
    return snapshots


def snapshot(module: nn.Module, copies: bool = True) -> list[Tensor]:
    found = [parameter.detach().cpu() for parameter in module.parameters()]
    return [tensor.clone() for tensor in found] if copies else found


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def write_buffers(folder: Path, spec: ConvNet, shape: ImageShape, counts: Sequence[int], epochs: int = 2) -> list[list[Any]]:
    """A file for each number of trajectories; returns what is in them."""
    contents, seed = [], 0
    for number, count in enumerate(counts):
        contents.append([trained(network(spec, shape, seed + index), shape, epochs) for index in range(count)])
        seed += count
        write(folder / f"replay_buffer_{number}.pt", contents[-1])
    return contents
