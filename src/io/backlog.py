"""What waits for stores that were not there: deliver it, send it elsewhere, or drop it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from src.ground.errors import UserError
from src.io import courier, delivery, journal, mlflow_store
from src.io.delivery import counted
from src.io.progress import say

OWN = "own"  # the repository's own store, on the command line


def say_noted() -> None:
    """Say what went wrong where nobody was looking."""
    for sentence in journal.noted():
        say(sentence)


def sync(to: str | None = None, source: str | None = None) -> None:
    """Deliver all that waits, in order, each session to its own store, and say what it was.

    With `to`, sessions go to that store instead: those for `source`, or all. `OWN` names the repository's store. Raises
    UserError where something still waits, with the reason for each store.
    """
    mlflow_store.quieten()
    say_noted()
    courier.awaited()
    paths = journal.waiting() if source is None else delivery.backlog(_store(source))
    if not paths:
        return say("nothing waits for MLflow" if source is None else f"nothing waits for MLflow at {source}")
    names = {path.name: journal.opening_of(path).store for path in paths}
    left = delivery.deliver(paths, say, _store(to), elsewhere=to is not None)
    waiting = {name: reason for name, reason in left.items() if reason != delivery.AT_WORK}
    for name in left.keys() - waiting.keys():
        say(f"{name.split('-', 2)[2]}: {delivery.AT_WORK}")
    if waiting:
        raise UserError(_still_waiting(waiting, {name: _store(to) if to else store for name, store in names.items()}))
    return None


def _still_waiting(reasons: Mapping[str, str], stores: Mapping[str, str | None]) -> str:
    """A sentence a store and reason."""
    groups = Counter((stores[name], reason) for name, reason in reasons.items())
    lines = [
        f"{counted(number, 'sessions')} still {verb(number)} for MLflow at {mlflow_store.title(store)}: {reason}"
        for (store, reason), number in groups.items()
    ]
    foreign = next((store for store, _ in groups if store is not None), None)
    remedy = (
        f"start it and run this again, or use --to {OWN} --from {foreign} or --forget {foreign}"
        if foreign is not None
        else "mend that, and run this again"
    )
    return f"{'; '.join(lines)}: {remedy}"


def forget(store: str) -> None:
    """Drop what waits for a store, and say what it was."""
    paths = delivery.backlog(_store(store))
    if not paths:
        return say(f"nothing waits for MLflow at {store}")
    with journal.delivery(_store(store)):
        for path in paths:
            with journal.taken(path) as ended:
                if ended:
                    journal.remove(path)
            say(f"{journal.name_of(path)}: {'dropped' if ended else delivery.AT_WORK}")
    return None


def verb(number: int) -> str:
    return "waits" if number == 1 else "wait"


def _store(name: str | None) -> str | None:
    return None if name in (None, OWN) else mlflow_store.spelled(name)
