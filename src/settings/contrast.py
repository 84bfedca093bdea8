"""Of tuples: the loss of encoders, and the similarity of synthetic tuples that it takes for its target.

Papers: MTT-VL is arXiv 2308.07545, LoRS 2406.03793; the shared proxy is ours, after the idea of 2604.10666.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from src.settings.base import NonNegativeReal, Positive, PositiveReal, Settings

TEMPERATURE = 0.07


class Contrast(Settings):
    """The loss of a batch of tuples, the mean over all pairs of modalities."""

    loss: Literal["infonce", "wbce"] = "infonce"
    """infonce: the cross-entropy of each row and column of similarities with the target's, their mean (MTT-VL). wbce: the
    binary cross-entropy of each similarity, the mean of targets above 1/2 and that of the others weighing the same (LoRS)."""
    temperature: PositiveReal = TEMPERATURE
    """Similarities, cosines, are divided by this."""


class Similarity(Settings):
    """The target of the loss between synthetic tuples, S (S, S) of each pair of modalities, learned with them."""

    kind: Literal["low_rank", "proxy"]
    """low_rank: w I + (scale / rank) L R' with own w, L and R for each pair of modalities (LoRS), 1 + 2 rank numbers a tuple
    and pair. proxy: I + (scale / rank) Z Z' for all pairs of modalities at once, `rank` numbers a tuple."""
    rank: Positive = 10
    """r, columns of L and R, or of Z."""
    scale: PositiveReal = 1.0
    """a, LoRS's alpha."""
    lr: NonNegativeReal
    """Learning rate of these numbers."""
    spread: Annotated[float, Field(gt=0)] = 0.1
    """Standard deviation of the numbers that Z starts from. L starts from 1, R from 0 and w from 1, as LoRS has it."""
