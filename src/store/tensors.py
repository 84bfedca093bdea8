"""Tensor and JSON artifacts with the record of what made them: written, read, checked, compared.

A tensor artifact is a safetensors file with one metadata entry, JSON of its `Record`: what kind it is and what made it. One
entry, because safetensors writes several in random order, which would change the file's digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from src.ground.errors import ArtifactError
from src.store import files
from src.store.values import Record

METADATA_KEY = "ast"
RECORD = "record"  # its key in a JSON artifact
PROVENANCE = "provenance"  # its key in a record

Dtypes = Mapping[str, torch.dtype | tuple[torch.dtype, ...]]  # of tensors by name; a tuple allows several
NONE: Dtypes = {}


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON artifact; raises ArtifactError where it is not as it was written."""
    found = files.read_json(path, remedy)
    with files.understood(path, remedy):
        return files.unsealed(found)


def check_record(path: Path, expected: Record, remedy: str) -> None:
    """Raises ArtifactError where the artifact was made from other settings or inputs than `expected` names."""
    changes = differences(path, expected, remedy)
    if changes:
        raise ArtifactError(f"{path} was made differently ({'; '.join(changes[:3])}): {remedy}")


def differences(path: Path, expected: Record, remedy: str) -> list[str]:
    """Every setting in which the artifact's record is another one, and every input of those that `expected` names."""
    found, wanted = record_of(path, remedy), expected.plain()
    wanted["inputs"] = {**found.get("inputs", {}), **expected.inputs}
    return differing({**found, PROVENANCE: None}, {**wanted, PROVENANCE: None})


def provenance_differences(path: Path, expected: Record, remedy: str) -> list[str]:
    """Every part of the artifact's provenance that is another one in `expected`."""
    return differing(record_of(path, remedy).get(PROVENANCE), expected.plain()[PROVENANCE])


def record_of(path: Path, remedy: str) -> dict[str, Any]:
    if path.suffix == ".json":
        return dict(read_sealed(path, remedy)[RECORD])
    with opened(path, remedy) as file:
        found = _metadata(file, path, remedy)
    found.pop(files.CHECKSUM, None)
    return found


def differing(found: Any, wanted: Any, place: str = "") -> list[str]:
    """Every value in which two records, or parts of such as JSON gives them back, are not the same, with its dotted name."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted})
        return [line for key in keys for line in differing(found.get(key), wanted.get(key), f"{place}.{key}")]
    name = place.removeprefix(".").removeprefix("settings.").removeprefix("inputs.")
    return [] if found == wanted else [f"{name} was {found}, is {wanted}"]


def save(path: Path, tensors: dict[str, Tensor], record: Record, folder: Path | None = None) -> None:
    write(path, tensors, record.plain(), folder)


def write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any], folder: Path | None = None) -> None:
    metadata = json.dumps({**about, files.CHECKSUM: files.checksum(about, tensors)}, sort_keys=True)
    files.write_tensors(path, tensors, {METADATA_KEY: metadata}, folder)


def load(path: Path, kind: str, remedy: str, dtypes: Dtypes, sometimes: Dtypes = NONE) -> dict[str, Tensor]:
    """All tensors, of the kind, names and dtypes expected, finite, and as they were written.

    Those of `sometimes` may be there or not.
    """
    found_kind, found = read_whole(path, remedy)
    allowed = {name: one if isinstance(one, tuple) else (one,) for name, one in {**dtypes, **sometimes}.items()}
    fits = dtypes.keys() <= found.keys() <= allowed.keys() and all(
        tensor.dtype in allowed[name] for name, tensor in found.items()
    )
    if found_kind != kind or not fits:
        raise ArtifactError(f"{path} is a '{found_kind}', not a '{kind}' with {', '.join(dtypes)}: {remedy}")
    for name, tensor in found.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ArtifactError(f"{path} holds numbers in '{name}' that are not finite: {remedy}")
    return found


def read_whole(path: Path, remedy: str) -> tuple[str, dict[str, Tensor]]:
    """Kind and tensors of any artifact; raises ArtifactError where they are not as they were written."""
    with opened(path, remedy) as file:
        about = _metadata(file, path, remedy)
        found = files.held(file)
    checksum = about.pop(files.CHECKSUM, None)
    if checksum != files.checksum(about, found):
        raise ArtifactError(f"{path} is damaged, as its checksum does not fit: {remedy}")
    return str(about.get("kind")), found


def _metadata(file: Any, path: Path, remedy: str) -> dict[str, Any]:
    try:
        return dict(json.loads(file.metadata()[METADATA_KEY]))
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(f"{path} carries no record of what made it: {remedy}") from None


def opened(path: Path, remedy: str) -> Any:
    try:
        return files.opened(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: {remedy}") from None
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is damaged or no safetensors file ({error}): {remedy}") from None
