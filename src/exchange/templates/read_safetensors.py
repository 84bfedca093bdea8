"""Reader of a safetensors folder, for train_on_it.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def read(folder: Path, normalise: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What students read, (S, C, H, W), and labels: classes (S,) or probabilities (S, K)."""
    data = (folder / "synthetic.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")  # length of the header, the header in JSON, then the tensors' bytes
    kinds = {"F16": torch.float16, "F32": torch.float32, "I64": torch.int64}

    def tensor(name: str) -> Tensor:
        about = json.loads(data[8:start])[name]
        first, last = about["data_offsets"]
        flat = torch.frombuffer(bytearray(data[start + first : start + last]), dtype=kinds[about["dtype"]])
        return flat.reshape(about["shape"])

    return normalise(tensor("pixels").float()), tensor("labels")
