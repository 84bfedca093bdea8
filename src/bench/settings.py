"""What is measured: the options of `bench`, as the workers receive them."""

from __future__ import annotations

from typing import Literal

from src.settings.base import AugmentationKind, Mebibytes, Positive, Settings

Side = Literal["plain", "engine"]
Task = Literal["matching", "error", "peak", "experts", "experts_together", "evaluate", "machine"]
EXPERT_LR, EXPERT_MOMENTUM = 0.01, 0.9
STUDENT_LR, STUDENT_MOMENTUM, STUDENT_DECAY = 0.01, 0.9, 5e-4
AUGMENTATION: tuple[AugmentationKind, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")
ERROR_STEPS = 3  # the float64 graph of 30 steps at the default setting takes 20 GB


class Setting(Settings):
    """The network and what it reads, and how the engine runs it; the plain way is eager float32 whatever is said here."""

    size: Positive = 32
    """Side of the square images in pixels."""
    channels: Positive = 3
    """Channels of the images."""
    classes: Positive = 10
    """Classes, K."""
    width: Positive = 128
    """Channels of every convolution of the ConvNet."""
    depth: Positive = 3
    """Blocks of the ConvNet."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of the engine's convolutions and matrix products."""
    compile: Literal["auto", "on", "off"] = "on"
    """Whether the engine compiles; auto decides as it would for a real run of that size."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where both sides run."""
    workers: Positive | None = None
    """Processes in which the engine trains experts and students; as many as the cores hold where left out."""
    seed: int = 0
    """Root of all random numbers, the same on both sides."""


class MatchingSetting(Setting):
    """Iterations of the outer loop."""

    ipc: Positive = 10
    """Synthetic images per class; one inner step takes all of them."""
    syn_steps: Positive = 30
    """N, inner steps of one iteration."""
    iterations: Positive = 1
    """Timed iterations, after one to warm up."""
    memory_mib: Mebibytes = 896
    """Memory that the engine may take for what its steps keep, MiB: `runtime.memory_mib`."""

    @property
    def count(self) -> int:
        """Synthetic images, S."""
        return self.ipc * self.classes

    @property
    def way_points(self) -> int:
        """M, expert epochs that are matched."""
        return min(2, self.syn_steps)

    def for_error(self) -> MatchingSetting:
        """The same with the few steps that a float64 graph can hold."""
        return self.model_copy(update={"syn_steps": min(self.syn_steps, ERROR_STEPS)})


class ExpertsSetting(Setting):
    """One epoch of an expert's training."""

    images: Positive = 5120
    """Real images of the timed epoch."""
    batch_size: Positive = 256
    """Real images of one step."""
    gradient_penalty: float = 0.0
    """Weight of the gradient penalty, 0 switches it off."""


class EvaluateSetting(Setting):
    """Training of the fresh students of one evaluation."""

    ipc: Positive = 10
    """Synthetic images per class."""
    epochs: Positive = 20
    """Timed epochs, after one to warm up."""
    students: Positive = 5
    """Fresh students."""
    batch_size: Positive = 256
    """Synthetic images of one step, at most."""
