"""The section `experts`: expert buffers. Papers: AST is arXiv 2310.10541, MTT is arXiv 2203.11932, DSA is arXiv 2102.08259."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from src.settings.base import Augmentation, Momentum, NonNegativeReal, Positive, PositiveReal, Settings, Sha256
from src.settings.contrast import Contrast

PenaltyOf = Literal["sum", "centred", "loss"]


class Experts(Settings):
    """How a set of experts is trained on the real training split: a value of the section `experts`."""

    dataset: str
    """Data set, a key of `prepare`."""
    network: str
    """Network, a key of `networks`."""
    count: Positive
    """Number of experts; each is one trajectory of the buffer."""
    epochs: Positive
    """T, epochs of each expert; the trajectory holds T + 1 snapshots."""
    stop_epoch: Positive | None = None
    """Train and keep the first so many of the T epochs, as clipping and learning rate follow T; null trains all. Runs need
    max_start_epoch - 1 + expert_epochs; representative initialisation takes the last one kept."""
    batch_size: Positive = 256
    """Real images of one training step."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the experts; momentum applies to sgd only."""
    lr: PositiveReal
    """Learning rate of the experts (AST 0.003 with momentum 0.9; MTT 0.01 without)."""
    momentum: Momentum = 0.0
    """Momentum of the experts' SGD (AST 0.9, MTT 0)."""
    weight_decay: NonNegativeReal = 0.0
    """L2 decay added to the gradient (AST 1e-3, MTT 0)."""
    lr_drop_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The learning rate is multiplied by this once, from epoch T // 2 + 1 on (AST 0.6; 1 means no drop)."""
    augmentation: Augmentation = ()
    """Kinds of differentiable siamese augmentation (DSA); one is drawn for each batch."""
    clipping_loss: bool = False
    """AST part 1: scale the cross-entropy of the first epochs down, so that the early steps stay small."""
    clipping_start: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Coefficient of the cross-entropy in epoch 0."""
    clipping_end: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Coefficient in the last scaled epoch; it is 1 afterwards."""
    clipping_epochs: Positive = 10
    """Number of scaled epochs; the coefficient rises linearly over them."""
    gradient_penalty: NonNegativeReal = 0.0
    """AST part 2: lambda, weight of the gradient penalty (AST 2, 0 switches it off)."""
    gradient_penalty_axes: Literal["channels", "image"] = "channels"
    """The norm's axes: per pixel over the channels (AST's code), or over the whole image (as in WGAN-GP)."""

    gradient_penalty_of: PenaltyOf = Field(default="sum", exclude_if=lambda value: value == "sum")  # so that older records hold
    """Whose gradient with respect to the pixels is penalised. sum: that of the sum of all logits (AST), which cross-entropy
    does not see; centred: of the label's logit less the mean of all; loss: of the image's cross-entropy."""
    sharpness: NonNegativeReal = Field(default=0.0, exclude_if=lambda value: value == 0)
    """rho of sharpness-aware minimisation (SAM): each step takes its gradient uphill, at theta + rho g / ||g||. Twice the
    work. FTD 0.01; 0 is off."""

    contrast: Contrast | None = Field(default=None, exclude_if=lambda value: value is None)  # so that older records hold
    """Of tuples: the loss. Null is that of MTT-VL, infonce at a temperature of 0.07."""

    imported: Sha256 | None = Field(default=None, exclude_if=lambda value: value is None)  # so that older records hold
    """Digest of trajectories that other code trained and `import experts` brought: they are not trained here, and what the
    other fields say of their training is what was told then. Null trains."""

    @property
    def last_epoch(self) -> int:
        """The last epoch that is trained and kept."""
        return self.epochs if self.stop_epoch is None else self.stop_epoch

    @model_validator(mode="after")
    def _stops_within_its_epochs(self) -> Experts:
        if self.last_epoch > self.epochs:
            raise ValueError(f"stop_epoch {self.stop_epoch} lies beyond the {self.epochs} epochs: lower it, or set null")
        return self
