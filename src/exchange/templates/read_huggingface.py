"""Reader of a Parquet file of the Hugging Face format, for train_on_it.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def read(folder: Path, normalise: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What students read, (S, C, H, W), from the lossless column, and labels: classes (S,) or probabilities (S, K)."""
    import pyarrow.parquet

    file = next(iter(folder.rglob("train-00000-of-00001.parquet")))
    columns = pyarrow.parquet.ParquetFile(file).read(["label", "pixels"]).to_pydict()
    pixels, labels = torch.tensor(columns["pixels"]), torch.tensor(columns["label"])
    if "probabilities" in pyarrow.parquet.read_schema(file).names:
        found = pyarrow.parquet.ParquetFile(file).read(["probabilities"]).to_pydict()
        labels = torch.tensor(found["probabilities"])
    return normalise(pixels), labels
