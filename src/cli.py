"""The command line: one thin command for each stage of the pipeline, and the MLflow UI.

torch and mlflow are imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

from src.ground.errors import UserError

app = typer.Typer(
    help="Dataset distillation by matching smooth expert trajectories (AST). Settings are read from params.yaml.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DatasetOption = Annotated[str | None, typer.Option(help="A data set of the section `prepare`; all where left out.")]
ExpertsOption = Annotated[str | None, typer.Option(help="A key of the section `experts`; all where left out.")]
RunOption = Annotated[str | None, typer.Option(help="A run of the section `runs`; all where left out.")]


def _each(stage: Callable[[Any, str], None], params: Any, name: str | None, known: Mapping[str, Any]) -> None:
    for one in [name] if name is not None else known:
        stage(params, one)


@app.command()
def prepare(dataset: DatasetOption = None) -> None:
    """Split a data set's real images into train, validation and test, and take its statistics."""
    from src.ground.params import load

    params = load()
    from src.stages import prepare as stage

    _each(stage.run, params, dataset, params.prepare)


@app.command()
def experts(experts: ExpertsOption = None) -> None:
    """Train experts on the real training images and keep their trajectories: the expert buffer."""
    from src.ground.params import load

    params = load()
    from src.stages import experts as stage

    _each(stage.run, params, experts, params.experts)


@app.command()
def distill(run: RunOption = None) -> None:
    """Optimise a run's synthetic set so that students trained on it follow the experts."""
    from src.ground.params import load

    params = load()
    from src.stages import distill as stage

    _each(stage.run, params, run, params.runs)


@app.command()
def evaluate(run: RunOption = None) -> None:
    """Train fresh students on a run's synthetic set and score them on the validation and test splits."""
    from src.ground.params import load

    params = load()
    from src.stages import evaluate as stage

    _each(stage.run, params, run, params.runs)


@app.command()
def report() -> None:
    """Compare all runs in one page, data/report/report.html, and a table, data/report/report.md."""
    from src.ground.params import load

    params = load()
    from src.stages import report as stage

    stage.run(params)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine's loopback address.")] = 5000,
) -> None:
    """Open the MLflow UI on the store that the stages log to."""
    from src.io import tracking

    tracking.serve(port)


def main() -> None:
    """Run the app; errors a user can act on are a sentence on stderr, without a traceback."""
    try:
        app()
    except UserError as error:
        Console(stderr=True, highlight=False).print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
