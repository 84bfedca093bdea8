"""Sounds as logarithmic mel spectrograms, and back: a picture of how loud each band of pitches is at each moment."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DECIBELS = 80.0  # below the loudest moment of a sound: what is less is silence
POWER_FLOOR = 1e-10
ROUNDS = 60  # in which phases are found again (Griffin and Lim)


def spectrograms(waves: Tensor, rate: int, size: int) -> Tensor:
    """(n, 1, size, size) in [0, 1], bands from low to high, of waves (n, T): 0 is DECIBELS below the loudest, 1 the loudest."""
    power = _stft(waves, size).abs().square()  # (n, F, size)
    mel = filters(rate, size, power.shape[1]) @ power
    decibels = 10 * mel.clamp_min(POWER_FLOOR).log10()
    loudest = decibels.amax(dim=(1, 2), keepdim=True)
    return ((decibels - loudest) / DECIBELS + 1).clamp_min(0)[:, None]


def waves(pictures: Tensor, rate: int, samples: int) -> Tensor:
    """(n, samples) in [-1, 1] of spectrograms (n, 1, size, size): an impression, as phases are those that fit best."""
    size = pictures.shape[-1]
    hop, window = _hop(samples, size)
    frequencies = window // 2 + 1
    mel = 10 ** ((pictures[:, 0].clamp(0, 1) - 1) * DECIBELS / 10)
    magnitude = (torch.linalg.pinv(filters(rate, size, frequencies)) @ mel).clamp_min(0).sqrt()
    phases = torch.zeros_like(magnitude)
    wave = torch.zeros(len(pictures), samples)
    for _ in range(ROUNDS):
        wave = torch.istft(torch.polar(magnitude, phases), window, hop, window=torch.hann_window(window), length=samples)
        phases = _stft(wave, size).angle()
    return wave / wave.abs().amax(dim=1, keepdim=True).clamp_min(1e-9)


def filters(rate: int, bands: int, frequencies: int) -> Tensor:
    """Triangles (bands, frequencies) that are equally wide in mel, each with its tip at 1 where a frequency is there for it."""
    mel = torch.linspace(0, _mel(rate / 2), bands + 2)
    edges = (700 * (10 ** (mel / 2595) - 1)) / (rate / 2) * (frequencies - 1)  # in frequencies of the transform
    places = torch.arange(frequencies)
    low, tip, high = (edges[i : i + bands, None] for i in range(3))
    width = torch.maximum(tip - low, torch.ones_like(tip)), torch.maximum(high - tip, torch.ones_like(tip))
    return torch.minimum((places - tip) / width[0] + 1, (tip - places) / width[1] + 1).clamp_min(0)


def _mel(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)


def _hop(samples: int, size: int) -> tuple[int, int]:
    """Samples from one moment to the next, and those that one looks at: a power of two, twice as many at least."""
    hop = -(-samples // (size - 1))
    return hop, 2 ** math.ceil(math.log2(2 * hop))


def _stft(waves: Tensor, size: int) -> Tensor:
    """(n, F, size)."""
    hop, window = _hop(waves.shape[1], size)
    padded = torch.nn.functional.pad(waves, (0, hop * (size - 1) - waves.shape[1]))
    return torch.stft(padded, window, hop, window=torch.hann_window(window), return_complex=True, pad_mode="constant")
