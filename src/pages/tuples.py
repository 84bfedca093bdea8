"""Synthetic tuples as the page shows them: pictures, the nearest real text, spectrograms with sound, similarities, recall."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.pages import sheets

MOST = 12  # tuples that are shown
LOUDEST = 32767  # of samples of 16 bits


@dataclass(frozen=True)
class Cell:
    """What is shown of one modality of a tuple: what there is of it."""

    picture: str = ""  # data URI
    text: str = ""
    sound: str = ""  # data URI


@dataclass(frozen=True)
class Similarities:
    """The target of one pair of modalities, or of all, as pictures (S, S): dark is alike."""

    title: str
    before: str
    after: str


@dataclass(frozen=True)
class Shown:
    """One run of tuples."""

    run: str
    names: tuple[str, ...]  # of modalities
    tuples: tuple[tuple[Cell, ...], ...]
    count: int  # tuples there are
    similarities: tuple[Similarities, ...]
    directions: tuple[tuple[str, str, str, str], ...]  # in words, and recall at 1, 5 and 10 on the test split


def matrix(values: Tensor) -> str:
    """A picture of similarities (S, S): 0 is white, 1 and more black, below 0 red."""
    shades = 1 - values.abs().clamp(0, 1)
    return sheets.single(torch.stack((torch.where(values < 0, torch.ones_like(shades), shades), shades, shades)))


def sound(samples: Tensor, rate: int) -> str:
    """A wav file of samples (T,) in [-1, 1], as a data URI."""
    return "data:audio/wav;base64," + base64.b64encode(wav(samples, rate)).decode()


def wav(samples: Tensor, rate: int) -> bytes:
    """A wav file of samples (T,) in [-1, 1]."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples.clamp(-1, 1) * LOUDEST).round().to(torch.int16).numpy().tobytes())
    return file.getvalue()


def nearest(values: Tensor, real: Tensor, texts: Sequence[str]) -> list[str]:
    """Of texts as numbers (S, D_m) the words of the nearest real one."""
    return [texts[place] for place in torch.cdist(values, real).argmin(dim=1).tolist()]


def recall_rows(metrics: Mapping[str, float], names: Sequence[str]) -> tuple[tuple[str, str, str, str], ...]:
    """Each direction with its recalls, of metrics by name."""
    stems = dict.fromkeys(name.rsplit("_r", 1)[0] for name in names)
    rows = []
    for stem in stems:
        cells = []
        for count in (1, 5, 10):
            mean, std = (100 * metrics[f"test_{stem}_r{count}_{of}"] for of in ("mean", "std"))
            cells.append(f"{mean:.1f} ± {std:.1f}")
        rows.append((stem.replace("_to_", " to "), cells[0], cells[1], cells[2]))
    return tuple(rows)
