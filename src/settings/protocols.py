"""The section `evaluate`: protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from src.settings.base import Augmentation, Momentum, NonNegativeReal, Positive, Settings, Several
from src.settings.contrast import Contrast

SCORES: Mapping[str, str] = {"last": "last epoch", "best_test": "best epoch on the test split"}


class Protocol(Settings):
    """How students are trained on a synthetic set and scored: a value of the section `evaluate`.

    The defaults are MTT's. AST's code has weight_decay 1e-3, lr_drop_factor 0.5 and score best_test. Soft labels need no
    setting: where the synthetic set has them, students learn the probabilities, as DATM's do.
    """

    students: Several = 5
    """Fresh students; accuracies are mean and standard deviation over them."""
    epochs: Positive = 1000
    """Epochs over the synthetic set; the learning rate is syn_lr."""
    batch_size: Positive = 256
    """Synthetic images of one step, at most."""
    momentum: Momentum = 0.9
    """Momentum of the students' SGD."""
    weight_decay: NonNegativeReal = 5e-4
    """L2 decay of the students' SGD."""
    lr_drop_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The learning rate is multiplied by this once, from epoch epochs // 2 + 1 on."""
    augmentation: Augmentation = ()
    """Kinds of DSA; one is drawn for each step and student."""
    score: Literal["last", "best_test"] = "last"
    """The epoch that is scored: the last one, which is then tested once; or, as AST's code does, each student's best one on
    the test split. That selects on the test split and reports more than an honest choice would find: for comparison only."""
    test_every: Positive = 100
    """Epochs from one test to the next, with best_test; the last epoch is always tested."""

    contrast: Contrast | None = Field(default=None, exclude_if=lambda value: value is None)  # so that older records hold
    """Of tuples: the students' loss. Null is that of MTT-VL, infonce at a temperature of 0.07."""

    @property
    def scored(self) -> str:
        """The epoch that is scored, in words."""
        return SCORES[self.score]

    @property
    def selects_on_test(self) -> bool:
        return self.score == "best_test"
