"""adopt: recorded work is the work of the code of now, where samples of it come out with the same bytes.

DVC runs again what other code made. Where only the code is another one, a sample of the work is done again: the first expert's
first epoch, a distillation's first and last iterations, one student. Where all is the same, the stage is marked up to date.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from src.ground.counting import counted
from src.ground.errors import UserError
from src.pages.tables import Table
from src.process.progress import say
from src.settings.resolved import Pipeline
from src.stages import resolve
from src.store import files, locked, tensors
from src.store.store import Store
from src.studies import samples
from src.studies.samples import Compared

STAGES = ("prepare", "experts", "distill", "evaluate")  # in the order of the pipeline


@dataclass(frozen=True)
class Outdated:
    """A stage of DVC whose settings are those of its last run, and whose code is not."""

    stage: str
    name: str

    @property
    def title(self) -> str:
        return f"{self.stage}@{self.name}"


def run(store: Store, pipeline: Pipeline, asked: Sequence[str]) -> None:
    """Adopt these stages, or all that can be. Raises UserError where some of these differ, after the others are adopted."""
    found = list(_outdated(store, pipeline, asked))
    if not found:
        return say("No stage is out of date by its code alone: `dvc status` says what is")
    results = {one: list(_samples(store, pipeline, one)) for one in found}
    Console(highlight=False, markup=False).print(_table(results))
    differing = {one for one, compared in results.items() if any(part.difference for part in compared)}
    differing |= {one for one in results if _begins_with(pipeline, one) & {other.title for other in differing}}
    same = [one for one in results if one not in differing]
    if same:
        resolve.run(store.data, pipeline)
        _dvc("commit", "--force", "resolve", *(one.title for one in same))
        say(f"{counted(len(same), 'stage')} marked up to date: commit dvc.lock")
    if len(same) < len(results):
        names = ", ".join(one.title for one in results if one not in same)
        raise UserError(f"{names} would come out otherwise, or may, and stay out of date: run `dvc repro`")
    return None


def _begins_with(pipeline: Pipeline, one: Outdated) -> set[str]:
    """The stages whose synthetic sets a distillation goes on from."""
    return {f"distill@{run.name}" for run in pipeline.runs[one.name].initials} if one.stage == "distill" else set()


def _outdated(store: Store, pipeline: Pipeline, asked: Sequence[str]) -> Iterator[Outdated]:
    """Raises UserError where one that is asked for can't be adopted."""
    lock = locked.stages()
    status = json.loads(_dvc("status", "--json", capture_output=True).stdout)
    known = {f"{Path(place).parent}@{Path(place).stem}": value for place, value in resolve.files_of(pipeline) if "/" in place}
    for title in asked:
        if title not in known:
            raise UserError(f"no stage is named '{title}': name some of dvc.yaml, as distill@RUN, or none for all")
    for title, value in sorted(known.items(), key=lambda one: STAGES.index(one[0].partition("@")[0])):
        reason = _refused(store, title, value, lock.get(title), status.get(title, []))
        if reason == "":
            yield Outdated(*title.split("@"))
        elif reason is not None and title in asked:
            raise UserError(f"{title} can't be adopted: {reason}")


def _refused(store: Store, title: str, value: dict[str, Any], entry: Any, changes: list[Any]) -> str | None:
    """Why a stage can't be adopted; '' where it can be, None where its settings and code are as they were."""
    stage, name = title.split("@")
    place = locked.place(store.data, stage, name)
    if entry is None:
        return "it was never run"
    recorded = locked.digest(entry, place)
    if recorded == files.text_digest(files.json_text(value)):
        return None
    touched = [path for one in changes if isinstance(one, dict) for part in one.values() for path in part]
    others = [path for path in touched if path != place.as_posix()]
    if others:
        return f"{', '.join(others)} changed as well, not its code alone"
    old = _cached(recorded)
    if old is None:
        return "what it was made with is not in DVC's cache: `dvc fetch resolve`"
    changed = tensors.differing({**old, "code": None}, {**value, "code": None})
    return f"its settings changed, not its code alone ({'; '.join(changed[:3])})" if changed else ""


def _cached(md5: str | None) -> dict[str, Any] | None:
    """What was resolved when the stage was run last, from DVC's cache."""
    if md5 is None:
        return None
    cache = Path(_dvc("cache", "dir", capture_output=True).stdout.strip(), "files", "md5", md5[:2], md5[2:])
    return dict(files.read_json(cache, "run `dvc repro`")) if cache.exists() else None


def _samples(store: Store, pipeline: Pipeline, one: Outdated) -> Iterator[Compared]:
    say(f"{one.title}: a sample of it again")
    if one.stage == "prepare":
        return samples.of_data_set(store, pipeline.data_sets[one.name])
    if one.stage == "experts":
        return samples.of_buffer(store, pipeline.buffers[one.name])
    if one.stage == "distill":
        return samples.of_synthetic(store, pipeline.runs[one.name])
    return samples.of_students(store, pipeline.runs[one.name])


def _table(results: dict[Outdated, list[Compared]]) -> Table:
    table = Table("stage", "compared", "differs")
    for one, compared in results.items():
        for part in compared:
            table.add_row(one.title, part.what, part.difference or "no")
    return table


def _dvc(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(["dvc", *words], text=True, check=False, **options)
    except FileNotFoundError:
        raise UserError("dvc is not on the PATH: activate the environment, as in `source .venv/bin/activate`") from None
    if done.returncode:
        raise UserError(f"dvc {words[0]} failed: {(done.stderr or 'see above').strip()}")
    return done
