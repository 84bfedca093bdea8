"""From the journals to MLflow: each session's entries, in their order, into the store that the session belongs to.

A backlog belongs to its store: it waits for that one alone, and keeps no other store's from being delivered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from src.ground.errors import UserError
from src.io import journal, mlflow_store
from src.io.mlflow_store import DeletedExperimentError, NoParentError, Row

AT_WORK = "its stage is still at work"
LONGEST = 200  # characters of an error's line


class Delivery:
    """One journal on its way: its row once that is open, and how far the store has been told.

    It may be told in parts while the session goes on, and from its start again by another process: nothing is there twice.
    """

    def __init__(self, path: Path, to: str | None = None, elsewhere: bool = False) -> None:
        """The session's own store gets it, or `elsewhere` the store `to`."""
        opening = journal.opening_of(path)
        self.path, self.opening = path, _sent(opening, to) if elsewhere else opening
        self.new = 0  # entries told in the last part
        self._row: Row | None = None
        self._place = 0
        self._told: Counter[str] = Counter()
        self._refused: list[str] = []

    def go_on(self) -> str | None:
        """Tell what is new. Says what the session was, once it has ended and all of it is told; its journal is gone then.

        Raises whatever keeps the store from it.
        """
        with journal.taken(self.path) as ended:  # asked before reading, so that nothing comes after what is read
            entries, place = journal.entries_from(self.path, self._place)
            self.new = len(entries)
            if self._row is None:
                self._row = mlflow_store.open_row(self.opening)
            for entry in entries:
                try:
                    self._told[entry["do"]] += self._row.deliver(entry)
                except Exception as error:
                    if not mlflow_store.refused(error):
                        raise
                    self._refuse(first(error))
            self._place = place
            if not ended:
                return None
            if not self._told_end:
                self._row.end("KILLED")
            journal.remove(self.path)
        names = {"metrics": "points", "params": "parameters", "image": "images", "file": "files", "tags": "tags"}
        parts = [counted(self._told[kind], name) for kind, name in names.items() if self._told[kind]]
        return ", ".join([*parts, *(f"refused: {problem}" for problem in self._refused)]) + f" -> run {self._row.run_id}"

    @property
    def _told_end(self) -> bool:
        return "end" in self._told

    def _refuse(self, problem: str) -> None:
        self._refused.append(problem)
        where = mlflow_store.title(self.opening.store)
        journal.note(self.path.name, f"Warning: MLflow at {where} refused a part of {self.opening.name}: {problem}")


def _sent(opening: journal.Opening, to: str | None) -> journal.Opening:
    """The opening for another store, where no run has the number that the session's own store gave it."""
    parent = None if opening.parent is None else _sent(opening.parent, to)
    return replace(opening, store=to, parent=parent, run_id=None)


def deliver(
    paths: Iterable[Path], tell: Callable[[str], None], to: str | None = None, elsewhere: bool = False
) -> dict[str, str]:
    """Deliver the journals of sessions that have ended, oldest first, each to its own store, or `elsewhere` to the store `to`.

    Tells of each; returns why those that still wait do, by the journal's name.
    """
    groups: dict[str | None, list[Path]] = {}
    for path in paths:
        groups.setdefault(to if elsewhere else journal.opening_of(path).store, []).append(path)
    left: dict[str, str] = {}
    for store, own in groups.items():
        with journal.delivery(store):
            left |= _deliver_to(store, own, tell, elsewhere)
    return left


def _deliver_to(store: str | None, paths: list[Path], tell: Callable[[str], None], elsewhere: bool) -> dict[str, str]:
    """The same for one store, which is asked no more once it has failed."""
    left: dict[str, str] = {}
    for number, path in enumerate(paths):
        if not path.exists():  # another process delivered it
            continue
        try:
            told = Delivery(path, store, elsewhere).go_on()
        except NoParentError:
            told = left[path.name] = "waits for the run that it belongs to"
        except DeletedExperimentError as error:
            told = left[path.name] = str(error)
        except Exception as error:  # a store may fail in any way
            return left | {one.name: first(error) for one in paths[number:] if one.exists()}
        if told is None:
            told = left[path.name] = AT_WORK
        tell(f"{journal.name_of(path)}: {told}")
    return left


def backlog(store: str | None) -> list[Path]:
    """Journals of this store, oldest first."""
    return [path for path in journal.waiting() if journal.opening_of(path).store == store]


def first(error: Exception) -> str:
    """An error in one line; the project's own say what to do, to their end."""
    if isinstance(error, UserError):
        return str(error)
    return " ".join(str(error).split())[:LONGEST] or type(error).__name__


def counted(number: int, things: str) -> str:
    """`1 session`, `2 sessions`."""
    return f"{number:,} {things if number != 1 else things.removesuffix('s')}"
