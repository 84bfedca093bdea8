"""verify: is an artifact as it was written, and made from the settings and inputs of now? No stage of the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from src.ground.errors import ArtifactError
from src.ground.params import Params
from src.io import artifacts
from src.io.artifacts import Record
from src.io.progress import say
from src.stages import records

REMEDY = "make it again, or fetch it from where it is whole"


def run(params: Params, path: Path) -> None:
    """Say what the file is and that it is sound; raises ArtifactError with all that differs."""
    kind, tensors = artifacts.read_whole(path, REMEDY)
    shapes = ", ".join(f"{name} {'x'.join(map(str, tensor.shape)) or 'scalar'}" for name, tensor in tensors.items())
    say(f"{path}: a whole {kind}: {shapes}")
    expected = _expected(params, path)
    if expected is None:
        say("It lies outside of data/, so that nothing in params.yaml says what it should be made from")
        return
    changes = artifacts.differences(path, replace(expected, kind=kind), REMEDY)
    if changes:
        raise ArtifactError(f"{path} was made differently: {'; '.join(changes)}")
    say("It was made from the settings and inputs of now")


def _expected(params: Params, path: Path) -> Record | None:
    """The record that the artifact at this place has today; None where it lies at none of the pipeline's places."""
    root = artifacts.DATA.resolve()
    place = path.resolve()
    if not place.is_relative_to(root):
        return None
    stage, *rest = place.relative_to(root).parts
    makers: dict[str, Callable[[Params, str], Record]] = {
        "prepare": lambda params, name: records.split_record(params, name, artifacts.load_statistics(name).source_sha256),
        "experts": records.experts_record,
        "distill": records.synthetic_record,
    }
    return makers[stage](params, rest[0]) if stage in makers and len(rest) > 1 else None
