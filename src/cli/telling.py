"""MLflow: its UI, and what waits for its store."""

from __future__ import annotations

from typing import Annotated

import typer

from src.cli.app import app
from src.ground.errors import UserError


@app.command()
def track_sync(
    source: Annotated[str | None, typer.Option("--from", metavar="URI", help="Only what waits for this store.")] = None,
    to: Annotated[str | None, typer.Option(metavar="URI", help="Deliver it to this store instead of its own.")] = None,
    forget: Annotated[str | None, typer.Option(metavar="URI", help="Drop what waits for this store; it is lost.")] = None,
) -> None:
    """Deliver to MLflow what stages could not while it was gone, to each store what was meant for it."""
    from src.tracking import backlog

    if forget is None:
        return backlog.sync(source, to)
    if to is not None or source is not None:
        raise UserError("--forget drops what waits for a store, and --from and --to deliver it: give one or the other")
    return backlog.forget(forget)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine's loopback address.")] = 5000,
) -> None:
    """Open the MLflow UI on the store that the stages log to."""
    from src.tracking import mlflow_store

    mlflow_store.serve(port)
