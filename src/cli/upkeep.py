"""What is done with artifacts: exported, shown, verified, cleaned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from src.cli.app import app
from src.ground.errors import UserError


@app.command()
def export(
    run: Annotated[list[str], typer.Option(help="A run of the section `runs`; several times for several, in one data set.")],
    to: Annotated[Path, typer.Option(file_okay=False, help="Folder to write to, new or empty.")],
    form: Annotated[
        Literal["images", "pt", "safetensors", "huggingface", "ddranking"] | None,
        typer.Option("--format", help="For other code, with a script that trains on it; our own folder where left out."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Pixels in float16: a file of half the size.")] = False,
) -> None:
    """Write a run's synthetic set to a folder, as tensors of pixels and as PNG files, for use elsewhere."""
    from src.settings.params import load

    params = load()
    for name in run:
        params.run(name)
    if form is None and len(run) > 1:
        raise UserError("several runs go into one folder with --format huggingface alone: name one --run, or that format")
    from src.settings import resolved
    from src.stages import export as exporting
    from src.store.store import Store

    runs = [resolved.run(params, name) for name in run]
    if form is None:
        return exporting.run(Store(), runs[0], to, half)
    return exporting.run_as(Store(), runs, to, form, half)


@app.command()
def gallery(
    to: Annotated[Path, typer.Option(dir_okay=False, help="File to write: FILE.html, FILE.webp or FILE.gif.")],
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Runs of the section `runs`; all distilled ones where left out.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="From the first iteration to the last.")] = 6.0,
    scale: Annotated[
        int | None,
        typer.Option(min=1, max=512, help="Pixels of the picture for a pixel of the images; as many as show them well."),
    ] = None,
) -> None:
    """Show images of runs evolving over iterations, in a page or an animation."""
    from src.settings.params import load

    params = load()
    for name in runs or ():
        params.run(name)
    from src.settings import resolved
    from src.stages import gallery as showing
    from src.store.store import Store

    showing.run(Store(), resolved.pipeline(params), runs or (), to, seconds, scale)


@app.command()
def publish(
    experts: Annotated[list[str], typer.Argument(help="Sets of the section `experts`, as dvc.lock has them.")],
    to: Annotated[Path, typer.Option(file_okay=False, help="Folder to write to; what it has of a remote stays.")],
) -> None:
    """Put expert buffers into a folder that others pull them from, as a remote of DVC, with a card that says how."""
    from src.settings.params import load

    params = load()
    for name in experts:
        params.expert_set(name)
    from src.settings import resolved
    from src.stages import publish as publishing

    publishing.run([resolved.buffer(params, name) for name in experts], to)


@app.command()
def verify(path: Annotated[Path, typer.Argument(dir_okay=False, help="A .safetensors file that a stage wrote.")]) -> None:
    """Check that an artifact is as it was written, and made from the settings and inputs of now."""
    from src.settings.params import load

    params = load()
    from src.stages import verify as verifying
    from src.store.store import Store

    verifying.run(Store(), params, path)


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Delete what is stale, instead of only listing it.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Take what is current too: it starts again then.")] = False,
) -> None:
    """List the checkpoints of long stages, and delete those that fit no settings, inputs and code of now."""
    from src.settings.params import load

    params = load()
    from src.settings import resolved
    from src.stages import clean as cleaning
    from src.store.store import Store

    cleaning.run(Store(), resolved.pipeline(params), yes, everything)


@app.command()
def adopt(
    stages: Annotated[
        list[str] | None, typer.Argument(help="Stages of dvc.yaml, as distill@RUN; all where left out.", show_default=False)
    ] = None,
) -> None:
    """After a change of code: do a sample of the work again, and mark up to date what comes out with the same bytes."""
    from src.settings.params import load

    params = load()
    from src.settings import resolved
    from src.store.store import Store
    from src.studies import adopt as adopting

    adopting.run(Store(), resolved.pipeline(params), stages or [])
