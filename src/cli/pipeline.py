"""The stages of the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from src.cli.app import app, each, named
from src.ground.errors import UserError
from src.process import progress, stopping

if TYPE_CHECKING:
    from src.settings.resolved import Run
    from src.store.store import Store

DatasetOption = Annotated[str | None, typer.Option(help="A data set of the section `prepare`; all where left out.")]
ExpertsOption = Annotated[str | None, typer.Option(help="A key of the section `experts`; all where left out.")]
RunOption = Annotated[str | None, typer.Option(help="A run of the section `runs`; all where left out.")]
NetworksOption = Annotated[
    str | None,
    typer.Option(
        help="Networks to score with now, keys of the section `networks` with commas between. Makes no artifact: "
        "set runs.RUN.cross in params.yaml to keep a network in the pipeline."
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict-tracking", envvar="AST_STRICT_TRACKING", help="End where MLflow fails, instead of keeping it for track-sync."
    ),
]
PlanOption = Annotated[bool, typer.Option("--plan", help="Only measure a few steps, and say what the run will cost.")]
DeviceOption = Annotated[
    Literal["cuda"] | None,
    typer.Option(
        help="With --plan: count the memory that a GPU needs, and say whether and how the run fits. No GPU is needed."
    ),
]
MemoryOption = Annotated[float | None, typer.Option(help="Of that GPU, GiB; this machine's where left out.")]


def span(text: str) -> range:
    """Of '3' or '0-9', both ends included. Raises UserError."""
    first, dash, last = text.partition("-")
    last = last if dash else first
    if not first.isdecimal() or not last.isdecimal() or int(last) < int(first):
        raise UserError(f"--only '{text}' names no experts: give the first and the last, as 0-9, or one")
    return range(int(first), int(last) + 1)


@app.command()
def resolve() -> None:
    """Write what each stage depends on: its settings and its code. `dvc repro` does it first."""
    from src.settings.params import load

    params = load()
    from src.settings import resolved
    from src.stages import resolve as stage

    stage.run(Path("data"), resolved.pipeline(params))


@app.command()
def prepare(dataset: DatasetOption = None) -> None:
    """Split a data set's real images into train, validation and test, and take its statistics."""
    from src.settings.params import load

    params = load()
    names = named(dataset, params.dataset, params.prepare)
    from src.settings import resolved
    from src.stages import prepare as stage

    each(stage.run, [resolved.data_set(params, name) for name in names])


@app.command()
def experts(
    experts: ExpertsOption = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="FIRST-LAST", help="Only these experts of --experts, beside others who train others; none twice."),
    ] = None,
    strict: StrictOption = False,
) -> None:
    """Train experts on the real training images and keep their trajectories: the expert buffer."""
    from src.settings.params import load

    params = load()
    names = named(experts, params.expert_set, params.experts)
    if only is not None and experts is None:
        raise UserError("--only needs --experts: name the set whose experts these are")
    some = None if only is None else span(only)
    from src.settings import resolved
    from src.stages import experts as stage

    if some is not None:
        return each(lambda store, one: stage.run_some(store, one, some), [resolved.buffer(params, name) for name in names])
    return each(stage.run, [resolved.buffer(params, name) for name in names], strict)


@app.command()
def distill(
    run: RunOption = None,
    plan: PlanOption = False,
    device: DeviceOption = None,
    memory: MemoryOption = None,
    strict: StrictOption = False,
) -> None:
    """Optimise a run's synthetic set so that students trained on it follow the experts."""
    if device is not None and not plan:
        raise UserError("--device belongs to --plan: set runtime.device in params.yaml for the run itself")
    if memory is not None and device is None:
        raise UserError("--memory belongs to --plan --device cuda: it is the memory of the GPU that is planned for")
    if memory is not None and not memory > 0:
        raise UserError(f"--memory is {memory:g}: give the GPU's memory in GiB, more than 0")
    from src.settings.params import load

    params = load()
    names = named(run, params.run, params.runs)
    from src.settings import resolved

    runs = [resolved.run(params, name) for name in names]
    if plan:
        resolved.check_images(runs, "--plan", "name a run of images with --run")
        with stopping.keeping(stopping.BEGINS):
            if device is not None:
                from src.stages import plan_memory

                return each(lambda store, one: plan_memory.run(store, one, memory), runs)
            from src.stages import plan as planning

            return each(planning.run, runs)
    return each(_distilled, runs, strict)


def _distilled(store: Store, run: Run) -> None:
    """With the experts first of the runs that it begins with; several processes of one run find them made, or are told how."""
    from src.process import ranks
    from src.stages import distill as stage
    from src.stages import experts

    if ranks.alone():
        for buffer in stage.missing_experts(store, run):
            progress.say(f"{buffer.name} is made first")
            experts.run(store, buffer)
    stage.run(store, run)


@app.command()
def plan(
    gpus: Annotated[int, typer.Option(min=1, help="GPUs, or machines like this one.")],
    dataset: Annotated[
        str | None, typer.Option(help="A data set of the presets, such as tiny-imagenet; or imagenet-1k.")
    ] = None,
    ipc: Annotated[str | None, typer.Option(help="Images per class, with commas between; 1,10,50 where left out.")] = None,
    recipe: Annotated[str | None, typer.Option(help="The presets' recipe: mtt, ast, ftd, ...; mtt where left out.")] = None,
    run: Annotated[str | None, typer.Option(help="A run of the section `runs` instead, whose data set is prepared.")] = None,
    device: Annotated[
        str, typer.Option(help="A GPU of the table, or `this`: a few steps are measured on this machine.")
    ] = "this",
    given: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An assumption, or a setting as experts.count.")
    ] = None,
) -> None:
    """Say what experts, distillation and evaluation would take on many GPUs: time, storage, network."""
    if (dataset is None) == (run is None):
        raise UserError("plan what? Name a data set with --dataset, or a run with --run")
    if run is not None and (ipc, recipe) != (None, None):
        raise UserError("--ipc and --recipe choose presets of a data set, and --run is one already: leave them out")
    ipc, recipe = ipc or "1,10,50", recipe or "mtt"
    if not all(one.strip().isdecimal() for one in ipc.split(",")):
        raise UserError(f"--ipc '{ipc}' names no images per class: give numbers with commas between")
    from src.stages import plan_cells, plan_cluster

    assumptions, changes = plan_cells.split(given or ())
    if run is not None:
        from src.settings import resolved
        from src.settings.params import load
        from src.store.store import Store

        cells = plan_cells.of_run(Store(), resolved.run(load(), run), changes)
    else:
        cells = plan_cells.cells_of(dataset or "", recipe, [int(one) for one in ipc.split(",")], changes)
    plan_cluster.run(cells, gpus, device, assumptions)


@app.command()
def evaluate(
    run: RunOption = None,
    networks: NetworksOption = None,
    file: Annotated[
        Path | None,
        typer.Option("--from", dir_okay=False, help="Score this synthetic set as the run's; prints, and keeps nothing."),
    ] = None,
    released: Annotated[
        str | None, typer.Option(help="Score this set of data/released with its own settings; prints, and keeps nothing.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Where the real images of --released are; downloaded where left out.")
    ] = None,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="Score the set as it was on the way, on the validation split alone.")
    ] = False,
    test: Annotated[
        bool, typer.Option("--test", help="Of --snapshots: on the test split too, whose best public code reports.")
    ] = False,
    strict: StrictOption = False,
) -> None:
    """Train fresh students on a run's synthetic set and score them on the validation and test splits."""
    from src.settings.params import load

    params = load()
    others = [] if networks is None else [name.strip() for name in networks.split(",")]
    if snapshots and (run is None or networks is not None or file is not None or released is not None):
        raise UserError("--snapshots needs --run and, beside it, --test alone: name the run whose images are to be scored")
    if test and not snapshots:
        raise UserError("--test belongs to --snapshots, as all else is tested anyway: leave it out")
    if released is not None and (run is not None or file is not None):
        raise UserError("--released names all that is scored: leave out --run and --from")
    if released is None and data is not None:
        raise UserError("--data belongs to --released: name a released set, or set prepare.DATASET.path in params.yaml")
    if file is not None and run is None:
        raise UserError("--from needs --run, whose data set and protocol it is scored with: name one")
    if released is not None:
        with stopping.keeping(stopping.BEGINS):  # its images may have to be prepared; students are kept
            from src.studies import released as sets

            return sets.run(released, data, others, params)
    from src.settings import resolved

    runs = [resolved.run(params, name) for name in named(run, params.run, params.runs)]
    chosen = {name: params.network(name) for name in others}
    for one in runs:
        resolved.check_networks(one, chosen)
    if file is not None:
        resolved.check_images(runs, "--from", "leave it out")
    if snapshots:
        from src.studies import snapshots as moments

        return each(lambda store, one: moments.run(store, one, test), runs, strict)
    from src.stages import evaluate as stage

    if file is not None:
        return each(lambda store, one: stage.score_file(store, one, chosen, file), runs)
    if networks is None:
        return each(stage.run, runs, strict)
    return each(lambda store, one: stage.score_networks(store, one, chosen), runs, strict)


@app.command()
def report() -> None:
    """Compare all runs in one page, data/report/report.html, and a table, data/report/report.md."""
    from src.settings.params import load

    params = load()
    from src.settings import resolved
    from src.stages import report as stage

    each(stage.run, [resolved.pipeline(params)])


@app.command()
def repro(
    jobs: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Stages at once; as many as the cores hold where left out.")
    ] = None,
) -> None:
    """Run all that is out of date, as `dvc repro` does, with stages that need nothing of each other at once."""
    from src.settings.params import load

    params = load()
    from src.settings import resolved
    from src.stages import repro as reproducing

    reproducing.run(resolved.pipeline(params), jobs)
