"""The section `distill`: methods. Papers: AST is arXiv 2310.10541, MTT is arXiv 2203.11932, DSA is arXiv 2102.08259."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from src.settings.base import Augmentation, Momentum, NonNegativeReal, Positive, PositiveReal, Settings, Sha256


class Given(Settings):
    """A synthetic set that `import synthetic` brought."""

    file: str
    """Its name in data/imported, without the suffix."""
    sha256: Sha256
    """Digest of its tensors."""


class Distillation(Settings):
    """How the synthetic set is initialised and optimised: a method of the section `distill` with a run's own values."""

    initialisation: Literal[
        "representative", "random", "noise", "k_means_embeddings", "herding", "k_center", "given"
    ]  # fmt: skip
    """AST part 3 (representative): real images nearest to the K-means centres of an expert's logits; random real ones; noise;
    or, by the embeddings of an expert, those nearest to K-means centres, those of herding or the k-center greedy ones; or those
    that are `given`."""
    given: Given | None = Field(default=None, exclude_if=lambda value: value is None)  # so that older records hold
    """An imported synthetic set, with 0 iterations as it is. Its learning rate is told by lr_init."""
    iterations: Annotated[int, Field(ge=0)]
    """Outer steps; 0 keeps the initial images, which makes the initialisation itself a baseline. A run with more of them than
    before goes on where it ended."""
    syn_steps: Positive = 20
    """N, student steps of one iteration."""
    expert_epochs: Positive = 2
    """M, expert epochs that N student steps are matched to."""
    max_start_epoch: Positive = 1
    """Start epochs s are drawn from 0 .. max_start_epoch - 1."""
    batch_syn: Positive | None = None
    """Synthetic images of one student step; null takes all."""
    lr_img: PositiveReal = 100.0
    """Learning rate of the images."""
    lr_lr: NonNegativeReal = 1e-5
    """Learning rate of syn_lr; 0 keeps syn_lr at lr_init."""
    lr_init: PositiveReal = 0.01
    """Initial syn_lr (alpha), the student's learning rate."""
    syn_lr_min: PositiveReal = 1e-5
    """syn_lr is set back to this where an outer step would take it below: a negative rate would climb the loss."""
    trajectories_per_iteration: Positive = 1
    """Expert trajectories that one iteration is matched to; their gradients are averaged."""
    outer_momentum: Momentum = 0.5
    """Momentum of the outer SGD, for images and syn_lr."""
    inner_momentum: Momentum = 0.0
    """mu, momentum of the student's SGD (AST 0.9, MTT 0)."""
    inner_weight_decay: NonNegativeReal = 0.0
    """L2 decay of the student's SGD."""
    augmentation: Augmentation = ()
    """Kinds of DSA for the student; one is drawn for each step."""
    balanced_loss: bool = False
    """AST part 4: scale the student's cross-entropy by the start epoch, up for late starts, down for early ones."""
    balance_base: Annotated[float, Field(gt=1)] = 5.0
    """Base of the logarithm of the balanced loss."""
    balance_offset: Annotated[float, Field(gt=1)] = 8.0
    """Offset inside the logarithm of the balanced loss."""
    intermediate_loss: Literal["off", "sum", "ramp"] = "off"
    """AST part 5: match the M - 1 inner way points too, with weight 1 (sum) or k / M (ramp)."""
    weight_perturbation: NonNegativeReal = 0.0
    """AST part 6: a, strength of the relative noise on the start point's convolution weights (AST 1, 0 is off)."""
    on_divergence: Literal["stop", "restore"] = "stop"
    """What follows on numbers that are not finite or absurd: the end of the run, or its continuation from the last iteration
    that is a multiple of 100, with half of lr_img from then on; three times at most."""
    snapshot_every: Positive = 1000
    """Iterations from one moment at which the images are kept, for pictures and `evaluate --snapshots`, to the next; before the
    first iteration and after the last one they always are."""

    @property
    def last_epoch(self) -> int:
        """The last expert epoch that is matched: M epochs after the latest start."""
        return self.max_start_epoch - 1 + self.expert_epochs

    @property
    def asks_experts(self) -> bool:
        """Whether they are matched, or choose the initial images."""
        return self.iterations > 0 or self.initialisation not in ("random", "noise", "given")
