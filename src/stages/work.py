"""What defines the work of a long stage: partial work is continued under the same definition, and under no other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from src.ground.params import Params
from src.io import checkpoints, workers
from src.io.artifacts import Record
from src.io.checkpoints import Work


def definition(params: Params, stage: str, record: Record, device: torch.device) -> Mapping[str, Any]:
    """Everything that the bytes of a stage's work depend on, save whether it is compiled."""
    asked = params.runtime
    threads = torch.get_num_threads() if stage == "distill" else workers.threads(asked)
    return {
        "record": json.loads(record.to_json()),
        "runtime": {
            "device": device.type,
            "threads": threads,
            **asked.model_dump(include={"precision", "compile", "deterministic"}),
        },
        "torch": str(torch.__version__),
        "code": checkpoints.code(stage),
    }


def of(params: Params, stage: str, name: str, record: Record, device: torch.device, compiled: bool) -> Work:
    """The work of a stage as its checkpoints know it."""
    found = {**definition(params, stage, record, device), "compiled": compiled}
    return Work(stage, name, found, params.runtime.checkpoint_seconds)
