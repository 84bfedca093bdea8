"""The command line: one thin command for each stage of the pipeline, and the MLflow UI.

torch and mlflow are imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from src.io import stopping

if __name__ == "__main__":
    stopping.answer()  # ahead of imports that take a while

from src.ground.errors import InterruptedWorkError, UserError, lacking

try:
    import typer
    from rich.console import Console

    from src.io.tables import Table
except ModuleNotFoundError as error:
    sys.exit(lacking(error))

# what a file system refuses to do, wherever; any other error of the operating system is a defect
REFUSALS = (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EPERM, errno.EROFS)

# what a signal leaves of commands that the same command goes on with; the others begin again
KEPT = {
    **dict.fromkeys(("experts", "distill", "evaluate"), stopping.GOES_ON),
    "tune": "finished trials are kept, and the same command goes on with the others",
    "ablate": "finished variants are kept, and the same command goes on with the others",
    "track-sync": "what is not delivered still waits, and the same command goes on with it",
}

app = typer.Typer(
    help="Dataset distillation by matching smooth expert trajectories (AST). Settings are read from params.yaml.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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

SizeOption = Annotated[int, typer.Option(min=4, max=512, help="Side of the square images, pixels.")]
ChannelsOption = Annotated[int, typer.Option(min=1, max=64, help="Channels of the images.")]
ClassesOption = Annotated[int, typer.Option(min=2, max=1000, help="Classes.")]
IpcOption = Annotated[int, typer.Option(min=1, max=1000, help="Synthetic images per class.")]
WidthOption = Annotated[int, typer.Option(min=1, max=4096, help="Channels of every convolution.")]
DepthOption = Annotated[int, typer.Option(min=1, max=8, help="Blocks of the ConvNet.")]
PrecisionOption = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the engine; the plain way is float32.")]
CompileOption = Annotated[Literal["auto", "on", "off"], typer.Option(help="torch.compile for the engine.")]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where both sides run.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Processes of the engine; as many as the cores hold where left out.")
]
RoundsOption = Annotated[int, typer.Option(min=1, max=100, help="Rounds of engine and plain, alternately.")]
JsonOption = Annotated[Path | None, typer.Option(dir_okay=False, help="File to write the figures to.")]


@app.callback()
def _begin(context: typer.Context) -> None:
    context.with_resource(stopping.keeping(KEPT.get(context.invoked_subcommand or "", stopping.BEGINS)))


def _each(stage: Callable[[Any, str], None], params: Any, names: Iterable[str], strict: bool = False) -> None:
    from src.io import tracking

    with tracking.strictly(strict):
        for one in names:
            stage(params, one)


def _named(name: str | None, find: Callable[[str], object], known: Iterable[str]) -> list[str]:
    """What to work on. Asked for before torch is imported, so that an unknown name is refused at once."""
    if name is None:
        return list(known)
    find(name)
    return [name]


@app.command()
def prepare(dataset: DatasetOption = None) -> None:
    """Split a data set's real images into train, validation and test, and take its statistics."""
    from src.ground.params import load

    params = load()
    names = _named(dataset, params.dataset, params.prepare)
    from src.stages import prepare as stage

    _each(stage.run, params, names)


@app.command()
def experts(experts: ExpertsOption = None, strict: StrictOption = False) -> None:
    """Train experts on the real training images and keep their trajectories: the expert buffer."""
    from src.ground.params import load

    params = load()
    names = _named(experts, params.expert_set, params.experts)
    from src.stages import experts as stage

    _each(stage.run, params, names, strict)


@app.command()
def distill(run: RunOption = None, plan: PlanOption = False, strict: StrictOption = False) -> None:
    """Optimise a run's synthetic set so that students trained on it follow the experts."""
    from src.ground.params import load

    params = load()
    names = _named(run, params.run, params.runs)
    if plan:
        with stopping.keeping(stopping.BEGINS):
            from src.stages import plan as planning

            return _each(planning.run, params, names)
    from src.stages import distill as stage

    return _each(stage.run, params, names, strict)


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
        bool, typer.Option("--snapshots", help="Score the images as they were on the way, on the validation split alone.")
    ] = False,
    strict: StrictOption = False,
) -> None:
    """Train fresh students on a run's synthetic set and score them on the validation and test splits."""
    from src.ground.params import load

    params = load()
    named = [] if networks is None else [name.strip() for name in networks.split(",")]
    if snapshots and (run is None or networks is not None or file is not None or released is not None):
        raise UserError("--snapshots needs --run and no other option: name the run whose images are to be scored")
    if released is not None and (run is not None or file is not None):
        raise UserError("--released names all that is scored: leave out --run and --from")
    if released is None and data is not None:
        raise UserError("--data belongs to --released: name a released set, or set prepare.DATASET.path in params.yaml")
    if file is not None and run is None:
        raise UserError("--from needs --run, whose data set and protocol it is scored with: name one")
    if released is not None:
        with stopping.keeping(stopping.BEGINS):  # its images may have to be prepared; students are kept
            from src.studies import released as sets

            return sets.run(released, data, named, params)
    runs = _named(run, params.run, params.runs)
    for name in named:
        params.network(name)
    if snapshots:
        from src.studies import snapshots as moments

        return _each(moments.run, params, runs, strict)
    from src.stages import evaluate as stage

    if file is not None:
        return stage.score_file(params, runs[0], named, file)
    if networks is None:
        return _each(stage.run, params, runs, strict)
    return _each(lambda params, name: stage.score_networks(params, name, named), params, runs, strict)


@app.command()
def export(
    run: Annotated[str, typer.Option(help="A run of the section `runs`.")],
    to: Annotated[Path, typer.Option(file_okay=False, help="Folder to write to, new or empty.")],
    half: Annotated[bool, typer.Option("--half", help="Pixels in float16: a file of half the size.")] = False,
) -> None:
    """Write a run's synthetic set to a folder, as tensors of pixels and as PNG files, for use elsewhere."""
    from src.ground.params import load

    params = load()
    params.run(run)
    from src.stages import export as exporting

    exporting.run(params, run, to, half)


@app.command()
def init(
    data: Annotated[str, typer.Option(help="A folder or file of images, or the name of a known data set.")],
    name: Annotated[str, typer.Option(help="What params.yaml is to call it.")],
    size: Annotated[int, typer.Option(min=8, max=256, help="Side of the square images that networks read, pixels.")],
    ipc: Annotated[int, typer.Option(min=1, help="Synthetic images per class of the first run.")] = 1,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave out images that can't be read.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Take images that have changed since they were added.")] = False,
    splits: Annotated[
        str | None,
        typer.Option(
            help="Where folders' names leave it in doubt: none, as they are classes, or train=FOLDER,val=FOLDER,test=FOLDER."
        ),
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of a Parquet source that holds the labels.")] = None,
    path: Annotated[
        str | None, typer.Option(help="Where the images lie, where --data only names them, as cifar10 does.")
    ] = None,
) -> None:
    """Look at images of your own, and add them to params.yaml with a first run on them."""
    from src.ground.params import check_name

    check_name(name)
    from src.stages import init as stage

    told = {"splits": splits, "label_column": label_column, "path": path}
    stage.run(data, name, size, ipc, skip_broken=skip_broken, update=update, **told)


@app.command()
def verify(path: Annotated[Path, typer.Argument(dir_okay=False, help="A .safetensors file that a stage wrote.")]) -> None:
    """Check that an artifact is as it was written, and made from the settings and inputs of now."""
    from src.ground.params import load

    params = load()
    from src.stages import verify as verifying

    verifying.run(params, path)


@app.command()
def report() -> None:
    """Compare all runs in one page, data/report/report.html, and a table, data/report/report.md."""
    from src.ground.params import load

    params = load()
    from src.stages import report as stage

    stage.run(params)


@app.command()
def repro(
    jobs: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Stages at once; as many as the cores hold where left out.")
    ] = None,
) -> None:
    """Run all that is out of date, as `dvc repro` does, with stages that need nothing of each other at once."""
    from src.ground.params import load

    params = load()
    from src.stages import repro as reproducing

    reproducing.run(params, jobs)


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Delete what is stale, instead of only listing it.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Take what is current too: it starts again then.")] = False,
) -> None:
    """List the checkpoints of long stages, and delete those that fit no settings, inputs and code of now."""
    from src.ground.params import load

    params = load()
    from src.stages import clean as cleaning

    cleaning.run(params, yes, everything)


@app.command()
def tune(
    dataset: Annotated[str | None, typer.Option(help="A data set of the section `prepare`.")] = None,
    ipc: Annotated[int | None, typer.Option(min=1, help="Synthetic images per class.")] = None,
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
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Processes; as many as fill the cores where left out.")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Add the best parameters to params.yaml, as the run RUN-tuned.")
    ] = False,
) -> None:
    """Search for better parameters of a run by validation accuracy. The same command again goes on with the same study."""
    from src.ground.params import load

    params = load()
    _named(dataset, params.dataset, ())
    _named(run, params.run, ())
    from src.studies import tune as tuning

    base = tuning.choose(params, dataset, ipc, run)
    tuning.run(params, base, side, trials, timeout, workers, apply)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Two evaluated runs of the section `runs`, or more.", show_default=False)],
    html: Annotated[Path | None, typer.Option(dir_okay=False, help="File to write a page with curves and pictures to.")] = None,
) -> None:
    """Show where runs differ: parameters, accuracy, cost; and whether their students differ by more than noise."""
    from src.ground.params import load

    params = load()
    for name in runs:
        params.run(name)
    from src.studies import compare as comparison

    comparison.run(params, runs, html)


@app.command()
def ablate(
    run: Annotated[str, typer.Option(help="A run of the section `runs`.")],
    seeds: Annotated[
        int, typer.Option(min=2, max=100, help="Repetitions, each with experts, draws and students of its own.")
    ] = 3,
    test: Annotated[bool, typer.Option("--test", help="Open the test split too, for a table to publish.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Processes; as many as fill the cores where left out.")
    ] = None,
) -> None:
    """Measure what AST's parts do for a run: without each, and each alone; the experts' two also together.

    The same command again goes on.
    """
    from src.ground.params import load

    params = load()
    params.run(run)
    from src.studies import ablate as ablation

    ablation.run(params, run, seeds, test, workers)


@app.command()
def track_sync(
    source: Annotated[str | None, typer.Option("--from", metavar="URI", help="Only what waits for this store.")] = None,
    to: Annotated[str | None, typer.Option(metavar="URI", help="Deliver it to this store instead of its own.")] = None,
    forget: Annotated[str | None, typer.Option(metavar="URI", help="Drop what waits for this store; it is lost.")] = None,
) -> None:
    """Deliver to MLflow what stages could not while it was gone, to each store what was meant for it."""
    from src.io import backlog

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
    from src.io import mlflow_store

    mlflow_store.serve(port)


preset_app = typer.Typer(help="Ready settings of published experiments, to add to params.yaml.", no_args_is_help=True)
app.add_typer(preset_app, name="preset")
PresetArgument = Annotated[str, typer.Argument(help="A preset, as `preset list` names it.", show_default=False)]


@preset_app.command("list")
def preset_list(
    dataset: Annotated[str | None, typer.Option(help="Only presets of this data set, such as cifar10.")] = None,
    method: Annotated[str | None, typer.Option(help="Only presets of this method: ast, mtt, random or whole.")] = None,
) -> None:
    """Show all presets with the accuracy to compare with and the experts they need."""
    from src.stages import presets

    presets.show_all(dataset, method)


@preset_app.command("show")
def preset_show(name: PresetArgument) -> None:
    """Show where a preset comes from and what it would add to params.yaml."""
    from src.stages import presets

    presets.show(name)


@preset_app.command("add")
def preset_add(
    name: PresetArgument,
    experts: Annotated[int | None, typer.Option(min=1, help="Experts to train; the preset's number where left out.")] = None,
) -> None:
    """Add a preset to params.yaml, whose comments and order stay."""
    from src.stages import presets

    presets.add(name, experts)


bench_app = typer.Typer(help="Measure this engine beside the plain way that public trajectory-matching code works.")
app.add_typer(bench_app, name="bench")


@bench_app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    size: SizeOption = 32,
    channels: ChannelsOption = 3,
    classes: ClassesOption = 10,
    width: WidthOption = 128,
    depth: DepthOption = 3,
    ipc: IpcOption = 10,
    syn_steps: Annotated[int, typer.Option(min=1, max=1000, help="Inner steps of one iteration.")] = 30,
    iterations: Annotated[int, typer.Option(min=1, max=1000, help="Timed iterations, after one to warm up.")] = 1,
    precision: PrecisionOption = "float32",
    compile: CompileOption = "on",
    device: DeviceOption = "auto",
    rounds: RoundsOption = 2,
    only: Annotated[Literal["engine", "plain"] | None, typer.Option(help="Measure one side alone.")] = None,
    json: JsonOption = None,
) -> None:
    """Seconds, memory and exactness of an iteration of distillation, and its share of the machine's own speed."""
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    from src.bench import comparison, tables
    from src.bench.settings import MatchingSetting

    setting = MatchingSetting(
        size=size, channels=channels, classes=classes, width=width, depth=depth, ipc=ipc, syn_steps=syn_steps,
        iterations=iterations, precision=precision, compile=compile, device=device,
    )  # fmt: skip
    found = comparison.matching(setting, rounds, only)
    _show(tables.matching(found), found, json)


@bench_app.command("experts")
def bench_experts(
    size: SizeOption = 32,
    channels: ChannelsOption = 3,
    classes: ClassesOption = 10,
    width: WidthOption = 128,
    depth: DepthOption = 3,
    images: Annotated[int, typer.Option(min=1, max=1_000_000, help="Real images of the timed epoch.")] = 5120,
    precision: PrecisionOption = "float32",
    compile: CompileOption = "on",
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    rounds: RoundsOption = 2,
    json: JsonOption = None,
) -> None:
    """Real images a second of expert training, without and with gradient penalty."""
    from src.bench import comparison, tables
    from src.bench.settings import ExpertsSetting

    setting = ExpertsSetting(
        size=size, channels=channels, classes=classes, width=width, depth=depth, images=images,
        precision=precision, compile=compile, device=device, workers=workers,
    )  # fmt: skip
    found = comparison.experts(setting, rounds)
    _show(tables.experts(found), found, json)


@bench_app.command("evaluate")
def bench_evaluate(
    size: SizeOption = 32,
    channels: ChannelsOption = 3,
    classes: ClassesOption = 10,
    width: WidthOption = 128,
    depth: DepthOption = 3,
    ipc: IpcOption = 10,
    epochs: Annotated[int, typer.Option(min=1, max=100_000, help="Timed epochs, after one to warm up.")] = 20,
    precision: PrecisionOption = "float32",
    compile: CompileOption = "on",
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    rounds: RoundsOption = 2,
    json: JsonOption = None,
) -> None:
    """Seconds that the training of five fresh students on a synthetic set takes."""
    from src.bench import comparison, tables
    from src.bench.settings import EvaluateSetting

    setting = EvaluateSetting(
        size=size, channels=channels, classes=classes, width=width, depth=depth, ipc=ipc, epochs=epochs,
        precision=precision, compile=compile, device=device, workers=workers,
    )  # fmt: skip
    found = comparison.evaluate(setting, rounds)
    _show(tables.evaluate(found), found, json)


def _refuse_options_before(context: typer.Context) -> None:
    """Options of a group that stand before its subcommand would be read by nobody."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise UserError(f"--{option} stands before '{context.invoked_subcommand}': options go behind it")


def _show(table: Table, found: dict[str, Any], file: Path | None) -> None:
    from src.bench import tables

    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(tables.conditions(found), soft_wrap=True, style="dim")
    if file is not None:
        from src.io import files

        files.write_json(file, found)


def main() -> None:
    """Run the app; errors a user can act on, and signals, end in a sentence on stderr, without a traceback."""
    try:
        with stopping.said():
            app()
    except UserError as error:
        _end(str(error) if isinstance(error, InterruptedWorkError) else f"Error: {error}", error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "src":
            raise
        sys.exit(lacking(error))
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        place = error.filename or "A file"
        _end(f"Error: {place} can't be used ({error.strerror}): free space or permit access there", UserError.exit_code)


def _end(sentence: str, code: int) -> NoReturn:
    Console(stderr=True, highlight=False).print(sentence, style="red", markup=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
