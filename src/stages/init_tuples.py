"""init of tuples: looks at a table of your own pictures, captions and sounds, and adds a first run on them to params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.editing import presets
from src.editing.presets import Sections, Tree
from src.ground.errors import DataError, UserError
from src.process import progress
from src.settings.datasets import Dataset, ImageModality, Modality
from src.settings.params import Params, load
from src.sources.tuples import layouts, reading, tables
from src.stages.presets import add_data_set
from src.store.values import TupleSplit

NAMES = {"image": "image", "text": "text", "audio": "sound"}  # kinds -> what their modality is called
LONGEST = 128  # characters of a text that are read
FEW = 50  # tuples of the first run, where none are asked for


def flaw(path: Path) -> str | None:
    """Why a path holds no table of pictures or sounds and texts that belong to them, '' without a table; None where it does."""
    if not path.exists() or (path.is_file() and path.suffix.lower() not in layouts.TABLES):
        return ""
    try:
        rows = layouts.rows(path, most=1)  # not all of a table of images and labels, say
    except layouts.NoTableError:
        return ""
    except DataError as error:
        return str(error)
    found, have = _columns(rows), layouts.columns(rows)
    if not have:
        return f"{path} holds a table without rows: add some"
    wanted = (
        f"init looks for one of texts ({', '.join(tables.USUAL['text'])}), and of pictures or sounds beside it (image, audio)"
    )
    return None if "text" in found and len(found) > 1 else f"{path} holds a table with the columns {', '.join(have)}: {wanted}"


def run(data: str, source: str, name: str, size: int, count: int | None, skip_broken: bool, update: bool) -> None:
    """Add the data set `name`, read from `data` and called `source`, with a run of so many tuples, None for a usual number.

    Raises UserError, before anything is written, where the table doesn't allow it, or where params.yaml has another data set
    of that name, or says other items and it isn't to be brought up to date.
    """
    params = load()
    known = params.prepare.get(name)
    settings = _first(data, source, size, skip_broken) if known is None else _there(known, name, source, size, skip_broken)
    found = reading.read(settings, name, params.seed)
    for line in found.notes:
        progress.say(line)
    for problem in found.problems:
        progress.say(f"problem: {problem}")
    for split, value in found.splits.items():
        progress.say(f"{split}: {len(value.rows):,} tuples of {_counts(value)}")
    train = len(found.splits["train"].rows)
    asked = min(FEW, max(1, train // 4)) if count is None else count
    if asked > train:
        raise DataError(f"--ipc {asked} exceeds the {train} tuples of the training split: lower it, or add rows")
    run_name = f"{name}-{asked}-low-rank"
    sections = _sections(params, name, settings.model_copy(update={"sha256": found.sha256}), run_name, asked)
    add_data_set(params, sections, run_name, name, found.sha256, update, "items")


def _first(data: str, source: str, size: int, skip_broken: bool) -> Dataset:
    """The data set as it would be in params.yaml."""
    rows = layouts.rows(Path(data))
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
    return Dataset.model_validate(
        {"source": source, **({"skip_broken": True} if skip_broken else {}), "modalities": modalities}
    )


def _there(known: Dataset, name: str, source: str, size: int, skip_broken: bool) -> Dataset:
    """The data set as it is in params.yaml; without its digest, so that other items can be read."""
    if known.modalities is None:
        text = f"params.yaml has prepare.{name} with images in classes, and {source} holds tuples"
        raise UserError(f"{text}: take another --name")
    sizes = [own.size for own in known.modalities.values() if isinstance(own, ImageModality)]
    if known.source != source or (sizes and size not in sizes):
        have = " and ".join([f"source {known.source}", *(f"size {one or 'null'}" for one in sizes)])
        raise UserError(f"params.yaml has another prepare.{name}, with {have}: take another --name, or that --data and --size")
    if skip_broken and not known.skip_broken:
        text = f"params.yaml has prepare.{name} with skip_broken false"
        raise UserError(f"{text}: set prepare.{name}.skip_broken: true there, or take another --name")
    return known.model_copy(update={"sha256": None})


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


def _sections(params: Params, name: str, settings: Dataset, run_name: str, count: int) -> Sections:
    """Encoders that are there may have been changed by hand, as the data set and its experts, and stay."""
    own, network = presets.read("tuples.yaml")["own"], f"{name}-encoders"
    modalities: Mapping[str, Modality] = settings.modalities or {}
    kept = {modality: own["encoders"][of.kind] for modality, of in modalities.items()}
    shared = {"dataset": name, "network": network}
    encoders = {"family": "Encoders", "embedding": own["embedding"], "encoders": kept}
    return {
        "prepare": {name: settings.model_dump(exclude_unset=True)},
        "networks": {} if network in params.networks else {network: encoders},
        "experts": {name: {**shared, **own["experts"]}},
        "distill": {"tuples-low-rank": own["distill"]},
        "evaluate": {"tuples": own["evaluate"]},
        "runs": {
            run_name: {**shared, "experts": name, "ipc": count, "distill": {"method": "tuples-low-rank"}, "evaluate": "tuples"}
        },
    }
