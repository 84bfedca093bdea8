"""verify: is an artifact as it was written, and made from the settings and inputs of now? No stage of the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from src.ground import runtime
from src.ground.errors import ArtifactError
from src.ground.params import Params
from src.io import artifacts, provenance
from src.io.artifacts import Record
from src.io.progress import say
from src.stages import records, work

REMEDY = "make it again, or fetch it from where it is whole"
KINDS: dict[str, Callable[[str], str]] = {  # stage -> what a file of this name is
    "prepare": lambda stem: stem if stem == artifacts.SPACE else artifacts.split_kind(stem),
    "experts": "trajectory {}".format,
    "distill": lambda stem: stem if stem == artifacts.SNAPSHOTS else artifacts.SYNTHETIC,
}


def run(params: Params, path: Path) -> None:
    """Say what the file is and that it is sound; raises ArtifactError with all that differs."""
    kind, tensors = artifacts.read_whole(path, REMEDY)
    shapes = ", ".join(f"{name} {'x'.join(map(str, tensor.shape)) or 'scalar'}" for name, tensor in tensors.items())
    say(f"{path}: a whole {kind}: {shapes}")
    expected = _expected(params, path)
    if expected is None:
        say("It lies outside of data/, so that nothing in params.yaml says what it should be made from")
        return
    changes = artifacts.differences(path, expected, REMEDY)
    if changes:
        raise ArtifactError(f"{path} was made differently: {'; '.join(changes)}")
    say("It was made from the settings and inputs of now")
    for line in artifacts.provenance_differences(path, expected, REMEDY):
        say(f"Its bytes may come out differently now, as its {line}")


def _expected(params: Params, path: Path) -> Record | None:
    """The record that the artifact at this place has today; None where it lies at none of the pipeline's places."""
    root = artifacts.DATA.resolve()
    place = path.resolve()
    if not place.is_relative_to(root):
        return None
    stage, *rest = place.relative_to(root).parts
    if stage not in KINDS or len(rest) < 2:
        return None
    name, kind = rest[0], KINDS[stage](place.stem)
    if stage == "prepare":
        record = records.prepared_record(params, name, artifacts.load_statistics(name).source_sha256, kind)
        return replace(record, provenance=provenance.of(stage))
    make = records.experts_record if stage == "experts" else records.synthetic_record
    return work.whole(replace(make(params, name), kind=kind), params, stage, runtime.start(params.runtime))
