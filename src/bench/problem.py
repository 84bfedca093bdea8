"""The same mathematical problem for both sides: images, an expert's snapshots, what is random in each step.

Real images are imitated, class by class, by a pattern with noise on it: nothing has to be downloaded, and an expert can
learn them, so that its snapshots are a plausible way to follow. Legend: S synthetic images, C channels, H x W pixels,
P parameters, M way points, B a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.bench.settings import AUGMENTATION, MatchingSetting, Setting
from src.ground.seeding import generator
from src.maths import inner_loop, networks
from src.maths.inner_loop import InnerRule, InnerStep
from src.maths.networks import FlatNetwork, ImageShape
from src.maths.targets.snapshots import WayPoint, way_points
from src.settings.distillation import Distillation
from src.settings.networks import ConvNet

NOISE = 1.0  # of an image, in units of its class's pattern
EXPERT_LR, EXPERT_MOMENTUM, EXPERT_STEPS, EXPERT_BATCH = 0.02, 0.9, 10, 16  # a few steps make an epoch here
SYN_LR, INNER_MOMENTUM = 0.01, 0.9


@dataclass(frozen=True)
class Problem:
    """One matching problem; both sides read the same numbers."""

    network: FlatNetwork
    images: Tensor  # (S, C, H, W)
    labels: Tensor  # (S,)
    snapshots: Tensor  # (M + 1, P), theta*_0 .. theta*_M
    settings: Distillation
    seed: int

    @property
    def rule(self) -> InnerRule:
        return InnerRule(self.settings.inner_momentum, self.settings.inner_weight_decay, coefficient=1.0)

    @property
    def way_points(self) -> list[WayPoint]:
        return way_points(self.snapshots[0], self.snapshots[1:], self.settings)

    def steps(self, iteration: int) -> list[InnerStep]:
        """The inner steps that distillation.iterate draws from `draws(iteration)`."""
        count, settings = len(self.labels), self.settings
        drawn = inner_loop.draw_steps(count, settings.syn_steps, count, settings.augmentation, self.draws(iteration))
        device, dtype = self.images.device, self.images.dtype
        return [InnerStep(step.index.to(device), step.draw.to(device, dtype)) for step in drawn]

    def draws(self, iteration: int) -> torch.Generator:
        return generator(self.seed, "bench", "iteration", iteration)

    def double(self) -> Problem:
        """The same numbers in float64."""
        return Problem(self.network, self.images.double(), self.labels, self.snapshots.double(), self.settings, self.seed)


def matching_problem(setting: MatchingSetting, device: torch.device) -> Problem:
    """The problem of `setting`, on the device."""
    module = build(setting, 0)
    settings = Distillation(
        initialisation="random", iterations=setting.iterations, syn_steps=setting.syn_steps,
        expert_epochs=setting.way_points, lr_img=1.0, lr_init=SYN_LR, inner_momentum=INNER_MOMENTUM,
        augmentation=AUGMENTATION, intermediate_loss="ramp",
    )  # fmt: skip
    labels = torch.arange(setting.classes).repeat_interleave(setting.ipc)
    images = real_images(setting, labels, "synthetic")
    snapshots = _snapshots(module, setting)
    return Problem(
        FlatNetwork(module.to(device)), images.to(device), labels.to(device), snapshots.to(device), settings, setting.seed
    )


def build(setting: Setting, student: int) -> nn.Module:
    """The network of `setting` with fresh parameters. Raises UserError where the images are too small for the depth."""
    return networks.build(spec(setting), shape(setting), generator(setting.seed, "bench", "initialisation", student))


def spec(setting: Setting) -> ConvNet:
    return ConvNet(depth=setting.depth, width=setting.width)


def shape(setting: Setting) -> ImageShape:
    return ImageShape(setting.channels, setting.size, setting.classes)


def real_images(setting: Setting, labels: Tensor, name: str) -> Tensor:
    """Imitated real images (N, C, H, W), mean 0 and standard deviation about 1, of the classes in `labels` (N,)."""
    patterns = torch.randn(
        setting.classes, setting.channels, 4, 4, generator=generator(setting.seed, "bench", "patterns")
    )  # coarse, so that a network with pooling can tell them apart
    smooth = F.interpolate(patterns, size=(setting.size, setting.size), mode="bilinear")
    shape = (len(labels), setting.channels, setting.size, setting.size)
    noise = torch.randn(shape, generator=generator(setting.seed, "bench", "noise", name))
    images: Tensor = (smooth[labels] + NOISE * noise) / math.sqrt(1 + NOISE**2)
    return images


def _snapshots(module: nn.Module, setting: MatchingSetting) -> Tensor:
    """theta*_0 .. theta*_M, (M + 1, P), of an expert that is trained for a moment, in small batches to hold little memory."""
    taken = [networks.flatten(module)]
    optimiser = torch.optim.SGD(module.parameters(), lr=EXPERT_LR, momentum=EXPERT_MOMENTUM)
    for epoch in range(setting.way_points):
        for step in range(EXPERT_STEPS):
            draws = generator(setting.seed, "bench", "expert", epoch, step)
            labels = torch.randint(setting.classes, (EXPERT_BATCH,), generator=draws)
            optimiser.zero_grad()
            F.cross_entropy(module(real_images(setting, labels, f"{epoch}/{step}")), labels).backward()
            optimiser.step()
        taken.append(networks.flatten(module))
    return torch.stack(taken)
