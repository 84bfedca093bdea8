"""What waits for tracking stores: each session for its own store alone, and for another one only where that is asked for."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from src.ground.counting import counted
from src.ground.errors import UserError
from src.process.progress import say
from src.tracking import courier, delivery, journal, mlflow_store, store_trouble, stores
from src.tracking.delivery import TURN_SECONDS, Held
from src.tracking.journal import DamagedError, Opening
from src.tracking.store_trouble import HeldError

_say_once = functools.cache(say)


def say_noted() -> None:
    """Say what went wrong where nobody was looking."""
    for sentence in journal.noted():
        say(sentence)


def say_others(store: str) -> None:
    """Name the other stores that are waited for, and journals that can't be read, once a process."""
    for error in journal.damaged():
        _say_once(f"MLflow's backlog: {error}")
    for other, number in _stores().items():
        if other != store:
            _say_once(f"MLflow's backlog: {counted(number, 'session')} for {other}, see `python -m src.cli track-sync --help`")


def clear_way(opening: Opening) -> None:
    """Deliver what waits for the store of a session that begins.

    Raises whatever keeps the store from it, and HeldError where an earlier session of the same run still waits.
    """
    if opening.store == stores.OWN:
        courier.awaited()
    for one, outcome in delivery.deliver(opening.store):
        if not isinstance(outcome, Held):
            say(f"MLflow's backlog: {one.name}: {outcome}")
        elif outcome.holds(opening):
            raise HeldError(f"an earlier session of {one.name} still waits ({outcome.reason})")
        elif outcome.trouble:
            _say_once(f"MLflow's backlog: {one.name} waits: {outcome.reason}")


def sync(source: str | None = None, to: str | None = None) -> None:
    """Deliver what waits, for all stores or for `source`, to its own store or to another one, and say what it was.

    Raises UserError where something goes on waiting that no stage is at work on.
    """
    mlflow_store.quieten()
    courier.awaited()
    say_noted()
    if not journal.waiting():
        return say("nothing waits for MLflow")
    target = None if to is None else stores.named(to)
    troubles = [trouble for store in _chosen(source, target) for trouble in _sync(store, target)]
    troubles += map(str, journal.damaged())
    if troubles:
        raise UserError("\n".join([*troubles, "Then run this again, or see its options --to and --forget."]))
    return None


def _sync(store: str, target: str | None) -> list[str]:
    """Deliver what waits for one store; sentences on what goes on waiting."""
    troubles = []
    try:
        for opening, outcome in delivery.deliver(store, target):
            if not isinstance(outcome, Held):
                say(f"{target or store}: {opening.name}: {outcome}")
                continue
            say(f"{store}: {opening.name} waits: {outcome.reason}")
            if outcome.trouble:
                troubles.append(f"{opening.name} still waits for {store}: {outcome.reason}")
    except Exception as error:  # in whatever way a store may fail: the others get theirs
        number = _stores()[store]
        waits = f"{counted(number, 'session')} still {'waits' if number == 1 else 'wait'} for {store}"
        return [f"{waits}: {store_trouble.sentence(error, target or store)}"]
    return troubles


@contextmanager
def _turn(store: str) -> Iterator[None]:
    """Raises UserError where another process delivers to the store as long as a stage works."""
    try:
        with journal.delivery(store, TURN_SECONDS):
            yield
    except Timeout:
        raise UserError(f"a stage at work delivers to {store}: run this again when it has ended") from None


def forget(uri: str) -> None:
    """Drop what waits for a store, and say what it was; raises UserError where nothing does."""
    for store in _chosen(uri, None):
        with _turn(store):
            for path, opening in journal.sessions(store):
                with journal.taken(path) as ended:
                    if ended:
                        say(f"{store}: {opening.name}: {delivery.told(_content(path))} dropped")
                        journal.remove(path)
                    else:
                        say(f"{store}: {opening.name}: kept, as its stage is still at work")


def _content(path: Path) -> Counter[str]:
    """How many things of each kind a journal holds; nothing where it can't be read."""
    found: Counter[str] = Counter()
    try:
        entries = journal.entries_from(path, 0)[0]
    except DamagedError:
        return found
    for entry in entries:
        found[entry["do"]] += len(entry.get("points", entry.get("values", "1")))
    return found


def _chosen(source: str | None, target: str | None) -> list[str]:
    """The stores whose sessions are meant."""
    waiting = _stores()
    if source is not None:
        name = stores.named(source)
        if name not in waiting:
            raise UserError(f"nothing waits for {name}: {' and '.join(waiting) or 'no store'} is waited for")
        return [name]
    others = [store for store in waiting if store != target]
    if target is not None and len(others) > 1:
        raise UserError(f"sessions wait for {' and '.join(others)}: say with --from which of them go to {target}")
    return list(waiting)


def _stores() -> Counter[str]:
    """All that sessions wait for and how many do, the one with the oldest first."""
    return Counter(opening.store for _, opening in journal.sessions())
