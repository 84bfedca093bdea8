"""init of tuples: looks at a table of your own pictures, captions and sounds, and adds a first run on them to params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.editing import presets
from src.editing.presets import Sections, Tree
from src.ground.errors import DataError
from src.process import progress
from src.settings.datasets import Dataset
from src.settings.params import load
from src.sources.tuples import layouts, reading, tables
from src.stages.presets import add_data_set
from src.store.values import TupleSplit

NAMES = {"image": "image", "text": "text", "audio": "sound"}  # kinds -> what their modality is called
LONGEST = 128  # characters of a text that are read
FEW = 50  # tuples of the first run, where none are asked for


def is_table(path: Path) -> bool:
    """Whether a path holds a table of pictures or sounds and texts that belong to them."""
    if not path.exists() or (path.is_file() and path.suffix.lower() not in layouts.TABLES):
        return False
    try:
        found = _columns(layouts.rows(path, most=1))  # not all of a table of images and labels, say
    except DataError:  # what it is instead, others say
        return False
    return "text" in found and len(found) > 1


def run(data: str, source: str, name: str, size: int, count: int | None, skip_broken: bool, update: bool) -> None:
    """Add the data set `name`, read from `data` and called `source`, with a run of so many tuples, None for a usual number.

    Raises UserError, before anything is written, where the table doesn't allow it, or where params.yaml says other items and
    it isn't to be brought up to date.
    """
    rows, params = layouts.rows(Path(data)), load()
    columns = _columns(rows)
    longest = max(len(text) for row in rows for text in _texts(row.values.get(columns["text"])))
    if not longest:
        raise DataError(f"{data} has no text in any row: write captions into its column {columns['text']}")
    own: Mapping[str, Tree] = {
        "image": {"kind": "image", "size": size, "channels": 3},
        "text": {"kind": "text", "length": min(longest, LONGEST)},
        "audio": {"kind": "audio"},
    }
    modalities = {NAMES[kind]: {**own[kind], "column": column} for kind, column in columns.items()}
    prepare: Tree = {"source": source, "modalities": modalities, **({"skip_broken": True} if skip_broken else {})}
    found = reading.read(Dataset.model_validate(prepare), name, params.seed)
    for line in found.notes:
        progress.say(line)
    for split, value in found.splits.items():
        progress.say(f"{split}: {len(value.rows):,} tuples of {_counts(value)}")
    train = len(found.splits["train"].rows)
    asked = min(FEW, max(1, train // 4)) if count is None else count
    if asked > train:
        raise DataError(f"--ipc {asked} exceeds the {train} tuples of the training split: lower it, or add rows")
    run_name, digest = f"{name}-{asked}-low-rank", found.sha256
    sections = _sections(name, {**prepare, "sha256": digest}, run_name, asked)
    add_data_set(params, sections, run_name, name, digest, update, "items")


def _counts(value: TupleSplit) -> str:
    return ", ".join(f"{name} {len(items.groups):,}" for name, items in value.items.items())


def _texts(value: Any) -> list[str]:
    several = value if isinstance(value, list) else [value]
    return [str(one or "") for one in several]


def _columns(rows: list[layouts.Row]) -> dict[str, str]:
    """The first column with a usual name of each kind, in the order of NAMES."""
    have, found = layouts.columns(rows), dict[str, str]()
    for kind in NAMES:
        column = next((one for one in tables.USUAL[kind] if one in have and one not in found.values()), None)
        if column is not None and not (kind == "audio" and column not in ("audio", "sound", "wav")):
            found[kind] = column
    return found


def _sections(name: str, prepare: Tree, run_name: str, count: int) -> Sections:
    own = presets.read("tuples.yaml")["own"]
    network, kept = f"{name}-encoders", {modality: own["encoders"][modality] for modality in prepare["modalities"]}
    shared = {"dataset": name, "network": network}
    encoders = {"family": "Encoders", "embedding": own["embedding"], "encoders": kept}
    return {
        "prepare": {name: prepare},
        "networks": {network: encoders},
        "experts": {name: {**shared, **own["experts"]}},
        "distill": {"tuples-low-rank": own["distill"]},
        "evaluate": {"tuples": own["evaluate"]},
        "runs": {
            run_name: {**shared, "experts": name, "ipc": count, "distill": {"method": "tuples-low-rank"}, "evaluate": "tuples"}
        },
    }
