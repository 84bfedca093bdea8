"""Studies beside the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from src.cli.app import app, named
from src.ground.errors import UserError

SeedsOption = Annotated[
    int, typer.Option(min=2, max=100, help="Repetitions, each with experts, draws and students of its own.")
]
TestOption = Annotated[bool, typer.Option("--test", help="Open the test split too, for a table to publish.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Processes; as many as fill the cores where left out.")
]


@app.command()
def tune(
    dataset: Annotated[str | None, typer.Option(help="A data set of the section `prepare`.")] = None,
    ipc: Annotated[int | None, typer.Option(min=1, help="Synthetic images per class, or tuples.")] = None,
    run: Annotated[str | None, typer.Option(help="The run to start from; the first that fits where left out.")] = None,
    side: Annotated[
        Literal["student", "expert", "both"],
        typer.Option(help="Whose parameters: the distillation's, its experts', or both together. Experts are costly."),
    ] = "student",
    trials: Annotated[
        int | None,
        typer.Option(min=0, help="Trials of the study, those of earlier calls included; `tune.trials` where left out."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds after which no trial begins.")] = None,
    workers: WorkersOption = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Add the best parameters to params.yaml, as the run RUN-tuned.")
    ] = False,
) -> None:
    """Search for better parameters of a run on the validation split. The same command again goes on with the same study."""
    from src.settings.params import load

    params = load()
    named(dataset, params.dataset, ())
    named(run, params.run, ())
    from src.store.store import Store
    from src.studies import tune as tuning

    base = tuning.choose(params, dataset, ipc, run)
    tuning.run(Store(), params, base, side, trials, timeout, workers, apply)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Two evaluated runs of the section `runs`, or more.", show_default=False)],
    html: Annotated[Path | None, typer.Option(dir_okay=False, help="File to write a page with curves and pictures to.")] = None,
) -> None:
    """Show where runs differ: parameters, accuracy or recall, cost; and whether their students differ by more than noise."""
    from src.settings.params import load

    params = load()
    for name in runs:
        params.run(name)
    from src.settings import resolved
    from src.store.store import Store
    from src.studies import compare as comparison

    comparison.run(Store(), resolved.pipeline(params), runs, html)


@app.command()
def ablate(
    run: Annotated[str, typer.Option(help="A run of the section `runs`.")],
    seeds: SeedsOption = 3,
    test: TestOption = False,
    workers: WorkersOption = None,
) -> None:
    """Measure what a method's parts do for a run: without each, and each alone; AST's experts' two also together.

    The same command again goes on.
    """
    from src.settings.params import load

    params = load()
    params.run(run)
    from src.settings import resolved
    from src.store.store import Store
    from src.studies import ablate as ablation

    ablation.run(Store(), resolved.run(params, run), params.tune, seeds, test, workers)


@app.command()
def methods(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Runs of the section `runs`, one a method, of one data set, network and ipc; or groups of `preset list`.",
            show_default=False,
        ),
    ],
    against: Annotated[
        str | None, typer.Option(help="The run that others are compared with; the first where left out.")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=0, help="Trials of each run's study; `tune.trials` where left out, 0 takes settings as they are."),
    ] = None,
    seeds: SeedsOption = 3,
    test: TestOption = False,
    workers: WorkersOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Replace a table that has more than this one will have.")] = False,
) -> None:
    """Compare methods at one budget: each run is tuned by as many trials, then repeated by as many seeds.

    Of groups, a table for each data set and ipc, and an overview of all. The same command again goes on.
    """
    from src.editing import groups
    from src.settings.params import load

    params = load()
    asked = groups.asked(params, runs)
    if asked and against is not None:
        raise UserError(f"--against {against} is for runs; those of a group are compared with its first: leave it out")
    for name in () if asked else runs:
        params.run(name)
    from src.store.store import Store
    from src.studies import method_groups
    from src.studies import methods as table

    if asked:
        method_groups.run(Store(), params, asked, trials, seeds, test, workers, yes)
    else:
        table.run(Store(), params, runs, against, trials, seeds, test, workers, yes)


@app.command()
def gradient_error(
    run: Annotated[str, typer.Option(help="A run of the section `runs`, whose experts are there.")],
    every: Annotated[int, typer.Option(min=1, help="Iterations from one comparison to the next.")] = 10,
) -> None:
    """Measure how far TESLA's gradient is from the exact one over a run's iterations: data/gradient-error/RUN.csv and .png."""
    from src.settings.params import load

    params = load()
    params.run(run)
    from src.settings import resolved
    from src.store.store import Store
    from src.studies import gradient_error as study

    study.run(Store(), resolved.run(params, run), every)
