"""The app, its end, and what groups of commands share."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

from src.ground.errors import InterruptedWorkError, UserError, lacking, out_of_memory
from src.process import stopping

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError as error:
    sys.exit(f"Error: {lacking(error)}")

# what a file system refuses to do, wherever; any other error of the operating system is a defect
REFUSALS = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
)

# what a signal leaves of commands that the same command goes on with; the others begin again
KEPT = {
    **dict.fromkeys(("experts", "distill", "evaluate", "repro"), stopping.GOES_ON),
    "tune": "finished trials are kept, and the same command goes on with the others",
    **dict.fromkeys(("ablate", "methods"), "finished variants are kept, and the same command goes on with the others"),
    "track-sync": "what is not delivered still waits, and the same command goes on with it",
}

app = typer.Typer(
    help="Dataset distillation by matching smooth expert trajectories (AST). Settings are read from params.yaml.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _begin(context: typer.Context) -> None:
    context.with_resource(stopping.keeping(KEPT.get(context.invoked_subcommand or "", stopping.BEGINS)))


def each(stage: Callable[..., None], resolved: Iterable[Any], strict: bool = False) -> None:
    """A stage of every value that it takes, in the store of this folder. Tracking is loaded by those that track."""
    from src.store.store import Store

    with _strictly() if strict else nullcontext():
        for one in resolved:
            stage(Store(), one)


def _strictly() -> AbstractContextManager[None]:
    from src.tracking import tracker

    return tracker.strictly(True)


def named(name: str | None, find: Callable[[str], object], known: Iterable[str]) -> list[str]:
    """What to work on. Asked for before torch is imported, so that an unknown name is refused at once."""
    if name is None:
        return list(known)
    find(name)
    return [name]


def whole() -> typer.Typer:
    """The app with the commands of all groups."""
    from src.cli import benches, data, pipeline, studies, telling, upkeep  # noqa: F401, they add their own

    return app


def main() -> None:
    """Run the app; errors a user can act on, and signals, end in a sentence on stderr, without a traceback."""
    try:
        with stopping.said():
            whole()()
    except UserError as error:
        _end(str(error) if isinstance(error, InterruptedWorkError) else f"Error: {error}", error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "src":
            raise
        sys.exit(f"Error: {lacking(error)}")
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        place = error.filename or "A file"
        remedy = "shorten its name" if error.errno == errno.ENAMETOOLONG else "free space or permit access there"
        _end(f"Error: {place} can't be used ({error.strerror}): {remedy}", UserError.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        said = str(error).strip().split("\n")[0]
        remedy = "lower runtime.workers, runtime.memory_mib, batch sizes or the network's width, or take more memory"
        _end(f"Error: memory ran out{f' ({said})' if said else ''}: {remedy}", UserError.exit_code)


def _end(sentence: str, code: int) -> NoReturn:
    Console(stderr=True, highlight=False).print(sentence, style="red", markup=False, soft_wrap=True)
    sys.exit(code)
