"""Small settings and sources of tuples."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RATE = 800  # samples a second


def params(**changes: Any) -> dict[str, Any]:
    """A fresh raw params.yaml of digits seen and written, in seconds: real, distilled and all tuples."""
    name = {"dataset": "digits-seen-written", "network": "both"}
    method = {
        "initialisation": "random",
        "iterations": 4,
        "snapshot_every": 2,
        "syn_steps": 3,
        "max_start_epoch": 1,
        "expert_epochs": 1,
        "lr_img": 1.0,
        "lr_init": 0.05,
        "inner_momentum": 0.9,
        "normalised": "modality",
    }
    proxy = {"kind": "proxy", "rank": 3, "lr": 1.0}
    raw: dict[str, Any] = {
        "seed": 0,
        "runtime": {"device": "cpu", "threads": 1, "workers": 1, "checkpoint_seconds": 0},
        "prepare": {
            "digits-seen-written": {
                "source": "digits-seen-written",
                "modalities": {"image": {"kind": "image"}, "text": {"kind": "text", "length": 8, "numbers": 4}},
            }
        },
        "networks": {
            "both": {
                "family": "Encoders",
                "embedding": 8,
                "encoders": {"image": {"depth": 1, "width": 4}, "text": {"family": "TextNet", "depth": 1, "width": 8}},
            }
        },
        "experts": {"two": {**name, "count": 2, "epochs": 2, "batch_size": 256, "lr": 0.05, "momentum": 0.9}},
        "distill": {"matched": method, "real": {"initialisation": "random", "iterations": 0, "lr_init": 0.05}},
        "evaluate": {"short": {"students": 2, "epochs": 3, "batch_size": 64}},
        "report": {"title": "Tuples"},
        "runs": {
            "proxy": {
                **name,
                "experts": "two",
                "ipc": 6,
                "distill": {"method": "matched", "similarity": proxy, "contrast": {"loss": "wbce", "temperature": 0.2}},
                "evaluate": "short",
            },
            "random": {**name, "experts": None, "ipc": 6, "distill": {"method": "real"}, "evaluate": "short"},
        },
    }
    return raw | changes


def later(raw: dict[str, Any]) -> dict[str, Any]:
    """The same with a run that begins with what another one ended with."""
    run = raw["runs"]["proxy"]
    begins = {"initialisation": "run", "initial_run": "proxy", "lr_init": None}
    raw["runs"]["later"] = {**run, "distill": {**run["distill"], **begins}}
    return raw


def spoken(raw: dict[str, Any], recordings: Path) -> dict[str, Any]:
    """The same with a third modality, whose recordings lie in a folder."""
    source = "digits-seen-written-spoken"
    (own,) = raw["prepare"].values()
    modalities = {**own["modalities"], "sound": {"kind": "audio", "size": 8, "seconds": 0.1}}
    raw["prepare"] = {source: {"source": source, "path": str(recordings), "modalities": modalities}}
    raw["networks"]["both"]["encoders"]["sound"] = {"family": "MLP", "depth": 1, "width": 8}
    for entry in (*raw["experts"].values(), *raw["runs"].values()):
        entry["dataset"] = source
    return raw


def write_recordings(folder: Path) -> None:
    """As FSDD calls them: a tone for each digit, twelve takes of two speakers, the first five for testing."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for digit in range(10):
        for speaker in ("anna", "ben"):
            for take in range(12):
                seconds = np.arange(60 + take) / RATE
                tone = 8000 * np.sin(2 * np.pi * (40 + 30 * digit) * seconds) + rng.normal(0, 200, len(seconds))
                (folder / f"{digit}_{speaker}_{take}.wav").write_bytes(wav(tone.astype(np.int16)))


def wav(samples: np.ndarray, rate: int = RATE, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(samples.dtype.itemsize)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())
    return file.getvalue()


def write_pictures(folder: Path, count: int) -> list[str]:
    """Pictures of one colour each, and their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"picture-{number:02d}.png" for number in range(count)]
    for number, name in enumerate(names):
        Image.new("RGB", (12, 10), (number * 7, 255 - number * 5, 40)).save(folder / name)
    return names
