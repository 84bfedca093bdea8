"""What defines the work of a long stage: partial work is continued under the same definition, and under no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from src.ground import runtime
from src.process import progress, workers
from src.settings.networks import Network
from src.settings.runtime import Runtime
from src.store import code, provenance, tensors
from src.store.checkpoints import Work
from src.store.values import Record

NAMED_CHANGES = 4  # of what keeps work from being gone on with a line names so many


def start(asked: Runtime, name: str) -> torch.device:
    """What `name` is worked on with; says where the settings make it slow."""
    device = runtime.start(asked)
    note = runtime.precision_note(asked, device)
    if note:
        progress.say(f"{name}: {note}")
    return device


def whole(record: Record, asked: Runtime, stage: str, device: torch.device) -> Record:
    """The record with its provenance: the packages, and what the machine lends the stage."""
    threads = torch.get_num_threads() if stage == "distill" else workers.threads(asked)
    lent = {"device": device.type, "threads": threads, **asked.model_dump(include={"precision", "compile", "deterministic"})}
    return replace(record, provenance={"packages": provenance.packages(), "runtime": lent})


def definition(stage: str, record: Record, spec: Network, targets: Sequence[str] = ()) -> Mapping[str, Any]:
    """Everything that the bytes of a stage's work with a network and targets depend on, save how its derivatives are taken."""
    return {"record": record.plain(), "code": code.digest(stage, [spec], targets=targets)}


def of(asked: Runtime, stage: str, name: str, record: Record, spec: Network, backend: str, targets: Sequence[str] = ()) -> Work:
    """The work of a stage as its checkpoints know it; its record is whole. Says why it can't go on with earlier work."""
    found = Work(stage, name, {**definition(stage, record, spec, targets), "backend": backend}, asked.checkpoint_seconds)
    before = found.predecessor()
    if before is not None:
        old, new = ({"backend": one.get("backend"), "code": one["code"], **one["record"]} for one in (before, found.definition))
        names = tensors.differing(old, new)
        more = f" and {len(names) - NAMED_CHANGES} more" if len(names) > NAMED_CHANGES else ""
        progress.say(f"{stage} {name}: earlier work is not gone on with, as its {', '.join(names[:NAMED_CHANGES])}{more}")
    return found
