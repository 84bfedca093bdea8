"""wav files as waves of one length."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from src.ground.errors import DataError

Waves = NDArray[np.int16]
WIDTHS = {1: np.uint8, 2: np.int16, 4: np.int32}  # bytes of a sample


def decoded(content: bytes, name: str) -> tuple[Waves, int]:
    """Samples (T,), the mean of all channels, and how many a second. Raises DataError."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError, RuntimeError, ValueError) as error:  # what its reader raises of damaged ones
        raise DataError(
            f"{name} can't be read as a wav file ({error}): convert it to wav with whole numbers as samples"
        ) from None
    if width not in WIDTHS:
        raise DataError(f"{name} has samples of {8 * width} bits: convert it to wav with 16")
    samples = np.frombuffer(raw[: len(raw) // (width * channels) * width * channels], dtype=WIDTHS[width]).astype(np.float64)
    if not len(samples):
        raise DataError(f"{name} holds no sound: record it again, or leave it out")
    whole = (samples - 128) * 256 if width == 1 else samples / 2 ** (8 * (width - 2))
    mean = whole.reshape(-1, channels).mean(axis=1).round()
    return mean.clip(-32768, 32767).astype(np.int16), rate  # a peak of 32 bits rounds to one too many


def of_one_length(sounds: Sequence[tuple[Waves, int]], names: Sequence[str], seconds: float) -> tuple[Waves, int]:
    """(n, T), cut or followed by silence, and samples a second, which must be those of the first. Raises DataError."""
    rate = sounds[0][1]
    found = np.zeros((len(sounds), round(seconds * rate)), dtype=np.int16)
    for place, (samples, own) in enumerate(sounds):
        if own != rate:
            raise DataError(f"{names[place]} has {own} samples a second, {names[0]} {rate}: bring all sounds to one rate")
        kept = samples[: found.shape[1]]
        found[place, : len(kept)] = kept
    return found, rate
