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
FASTEST = 1_000_000  # samples a second that a sound may have: more are damage
UNTOLD = 2**30  # bytes and more that a file says it has where what wrote it could not tell, as into a pipe


def decoded(content: bytes, name: str) -> tuple[Waves, int]:
    """Samples (T,), the mean of all channels, and how many a second. Raises DataError."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            raw, count = file.readframes(file.getnframes()), file.getnframes()
    except (wave.Error, EOFError, RuntimeError, ValueError) as error:  # what its reader raises of damaged ones
        reason = str(error) or "it ends too soon"
        raise DataError(
            f"{name} can't be read as a wav file ({reason}): convert it to wav with whole numbers as samples"
        ) from None
    if width not in WIDTHS:
        raise DataError(f"{name} has samples of {8 * width} bits: convert it to wav with 16")
    if not 0 < rate <= FASTEST:
        raise DataError(f"{name} says that it has {rate:,} samples a second: convert it to wav with the rate of its sound")
    moment = width * channels
    kept = len(raw) // moment
    if kept < count and count * moment < UNTOLD:
        raise DataError(f"{name} is cut off, with {kept:,} of its {count:,} samples: copy or download it again")
    samples = np.frombuffer(raw[: kept * moment], dtype=WIDTHS[width]).astype(np.float64)
    if not len(samples):
        raise DataError(f"{name} holds no sound: record it again, or leave it out")
    whole = (samples - 128) * 256 if width == 1 else samples / 2 ** (8 * (width - 2))
    mean = whole.reshape(-1, channels).mean(axis=1).round()
    return mean.clip(-32768, 32767).astype(np.int16), rate  # a peak of 32 bits rounds to one too many


def of_one_length(sounds: Sequence[tuple[Waves, int]], names: Sequence[str], seconds: float) -> tuple[Waves, int]:
    """(n, T), cut or followed by silence, and samples a second, which must be those of the first. Raises DataError."""
    rate = sounds[0][1]
    length = round(seconds * rate)
    if not length:
        raise DataError(f"{seconds:g} seconds hold no sample of sounds with {rate:,} a second: raise the modality's seconds")
    found = np.zeros((len(sounds), length), dtype=np.int16)
    for place, (samples, own) in enumerate(sounds):
        if own != rate:
            raise DataError(f"{names[place]} has {own} samples a second, {names[0]} {rate}: bring all sounds to one rate")
        kept = samples[: found.shape[1]]
        found[place, : len(kept)] = kept
    return found, rate
