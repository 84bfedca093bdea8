"""From the journals to MLflow: each session's entries, in their order, into the store that the session is for.

A store that is gone holds back its own sessions and no other's. Where a store is there and yet can't take a session, as its
experiment is deleted, that one is held back, with the later ones of the same run and those of its children.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import Timeout

from src.ground.counting import counted
from src.tracking import journal, mlflow_row, mlflow_store, store_trouble
from src.tracking.journal import Opening
from src.tracking.mlflow_row import Row

KINDS = {"metrics": "point", "params": "parameter", "image": "image", "file": "file", "tags": "tag"}
TURN_SECONDS = 10.0  # that one process waits for another to have delivered


@dataclass(frozen=True)
class Held:
    """A session that goes on waiting."""

    opening: Opening
    reason: str
    trouble: bool = True  # someone has to do something about it

    def holds(self, later: Opening) -> bool:
        """Whether the store must be told this one first: of points of a metric it takes those that rise.

        What is only at work has its run already, for its children to belong to.
        """
        parent = later.parent.run if later.parent is not None and self.trouble else None
        return self.opening.run in (later.run, parent)


class Delivery:
    """One journal on its way: its row once that is open, and how far the store has been told.

    It may be told in parts while the session goes on, and from its start again by another process: nothing is there twice.
    """

    def __init__(self, path: Path, opening: Opening) -> None:
        self.path, self.opening = path, opening
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
            if self._row is None:
                self._row = mlflow_store.open_row(self.opening)
            for entry in entries:
                try:
                    self._told[entry["do"]] += self._row.deliver(entry)
                except Exception as error:
                    if not mlflow_row.refused(error):
                        raise
                    self._refuse(store_trouble.first(error))
            self._place = place
            if not ended:
                return None
            if "end" not in self._told:  # its process was killed
                self._row.end("KILLED")
            journal.remove(self.path)
        return f"{told(self._told)}{''.join(f', refused: {text}' for text in self._refused)} -> run {self._row.run_id}"

    def _refuse(self, problem: str) -> None:
        self._refused.append(problem)
        journal.note(
            self.path.name, f"Warning: MLflow at {self.opening.store} refused a part of {self.opening.name}: {problem}"
        )


class Deliveries:
    """All that waits for one store, on its way there or, where that is asked for, to another one."""

    def __init__(self, store: str, target: str | None = None) -> None:
        self.store, self._target = store, target
        self._begun: dict[Path, Delivery] = {}

    def go_on(self) -> Iterator[tuple[Path, Opening, str | Held]]:
        """Tell what is new of each session, oldest first: what it was where it has ended and is told, or why it still waits.

        Raises what is wrong with a store that can't be asked anything.
        """
        held: list[Held] = []
        for path, opening in journal.sessions(self.store):
            before = next((one for one in held if one.holds(opening)), None)
            if before is None:
                outcome = self._tell(path, opening)
            else:
                outcome = Held(opening, f"it comes after {before.opening.name}, which waits", before.trouble)
            if isinstance(outcome, Held):
                held.append(outcome)
            yield path, opening, outcome

    def _tell(self, path: Path, opening: Opening) -> str | Held:
        one = self._begun.setdefault(path, Delivery(path, _sent(opening, self._target)))
        try:
            done = one.go_on()
        except Exception as error:  # of this one, or of the store
            mlflow_store.probe(one.opening.store)
            return Held(opening, store_trouble.sentence(error, one.opening.store))
        return Held(opening, "its stage is still at work", False) if done is None else done


def _sent(opening: Opening, target: str | None) -> Opening:
    """The session as if it had been for another store, which knows none of the ids."""
    if target is None:
        return opening
    parent = None if opening.parent is None else _sent(opening.parent, target)
    return replace(opening, store=target, parent=parent, run_id=None)


def deliver(store: str, target: str | None = None) -> Iterator[tuple[Opening, str | Held]]:
    """Deliver what waits for a store, as far as it goes; see `Deliveries.go_on`. Waits for its turn."""
    if not journal.sessions(store):
        return
    try:
        with journal.delivery(store, TURN_SECONDS):
            yield from ((opening, outcome) for _, opening, outcome in Deliveries(store, target).go_on())
    except Timeout:
        yield from ((one, Held(one, "another process delivers it", False)) for _, one in journal.sessions(store))


def told(content: Counter[str]) -> str:
    """How many things of each kind."""
    return ", ".join(counted(content[kind], name) for kind, name in KINDS.items() if content[kind]) or "nothing"
