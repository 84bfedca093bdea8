"""verify: is an artifact as it was written, and made from the settings and inputs of now? No stage of the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from src.ground import runtime
from src.ground.errors import ArtifactError
from src.process.progress import say
from src.settings import resolved
from src.settings.params import Params
from src.stages import records, work
from src.store import provenance, tensors, values
from src.store.store import Store
from src.store.values import Record

REMEDY = "make it again, or fetch it from where it is whole"
KINDS: dict[str, Callable[[str], str]] = {  # stage -> what a file of this name is
    "prepare": lambda stem: stem if stem == values.SPACE else values.split_kind(stem),
    "experts": "trajectory {}".format,
    "distill": lambda stem: stem if stem == values.SNAPSHOTS else values.SYNTHETIC,
}


def run(store: Store, params: Params, path: Path) -> None:
    """Say what the file is and that it is sound; raises ArtifactError with all that differs."""
    kind, found = tensors.read_whole(path, REMEDY)
    shapes = ", ".join(f"{name} {'x'.join(map(str, tensor.shape)) or 'scalar'}" for name, tensor in found.items())
    say(f"{path}: a whole {kind}: {shapes}")
    expected = _expected(store, params, path)
    if expected is None:
        say("It lies at no place of the pipeline, so that nothing in params.yaml says what it should be made from")
        return
    changes = tensors.differences(path, expected, REMEDY)
    if changes:
        raise ArtifactError(f"{path} was made differently: {'; '.join(changes)}")
    say("It was made from the settings and inputs of now")
    for line in tensors.provenance_differences(path, expected, REMEDY):
        say(f"Its bytes may come out differently now, as its {line}")


def _expected(store: Store, params: Params, path: Path) -> Record | None:
    """The record that the artifact at this place has today; None where it lies at none of the pipeline's places."""
    root = store.data.resolve()
    place = path.resolve()
    if not place.is_relative_to(root):
        return None
    stage, *rest = place.relative_to(root).parts
    if stage not in KINDS or len(rest) < 2:
        return None
    name, kind = rest[0], KINDS[stage](place.stem)
    if stage == "prepare":
        record = records.prepared_record(resolved.data_set(params, name), store.load_statistics(name).source_sha256, kind)
        return replace(record, provenance={"packages": provenance.packages()})
    if stage == "experts":
        record = records.experts_record(store, resolved.buffer(params, name))
    else:
        record = records.synthetic_record(store, resolved.run(params, name))
    return work.whole(replace(record, kind=kind), params.runtime, stage, runtime.start(params.runtime))
