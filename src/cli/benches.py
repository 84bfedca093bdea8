"""The engine beside the plain way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from src.cli.app import app
from src.ground.errors import UserError
from src.pages.tables import Table

SizeOption = Annotated[int, typer.Option(min=4, max=512, help="Side of the square images, pixels.")]
ChannelsOption = Annotated[int, typer.Option(min=1, max=64, help="Channels of the images.")]
ClassesOption = Annotated[int, typer.Option(min=2, max=1000, help="Classes.")]
IpcOption = Annotated[int, typer.Option(min=1, max=1000, help="Synthetic images per class.")]
WidthOption = Annotated[int, typer.Option(min=1, max=4096, help="Channels of every convolution.")]
DepthOption = Annotated[int, typer.Option(min=1, max=8, help="Blocks of the ConvNet.")]
PrecisionOption = Annotated[
    Literal["float32", "tf32", "bfloat16"],
    typer.Option(help="Of the engine; the plain way is float32, on CUDA as torch has it."),
]
CompileOption = Annotated[Literal["auto", "on", "off"], typer.Option(help="Own kernels or torch.compile for the engine.")]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where both sides run.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Processes of the engine; as many as the cores hold where left out.")
]
RoundsOption = Annotated[int, typer.Option(min=1, max=100, help="Rounds of engine and plain, alternately.")]
JsonOption = Annotated[Path | None, typer.Option(dir_okay=False, help="File to write the figures to.")]


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
    memory_mib: Annotated[int, typer.Option(min=0, help="Memory for what steps keep, MiB.")] = 896,
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
        iterations=iterations, memory_mib=memory_mib, precision=precision, compile=compile, device=device,
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


@bench_app.command("gpu")
def bench_gpu(
    minutes: Annotated[float, typer.Option(min=1, max=600, help="When to end, with what has been measured by then.")] = 10.0,
    json: JsonOption = None,
) -> None:
    """All that is worth knowing of a GPU, in order of worth: iterations, experts and students, engine and plain way."""
    from src.bench import gpu, tables
    from src.store import files

    def keep(found: dict[str, Any]) -> None:
        if json is not None:
            files.write_json(json, found)

    found = gpu.run(minutes, gpu.measurements(), keep)
    Console(highlight=False, markup=False).print(tables.gpu(found))


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
        from src.store import files

        files.write_json(file, found)
