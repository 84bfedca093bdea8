"""Data sets and ready settings, added to params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from src.cli.app import app
from src.ground.errors import UserError


@app.command()
def init(
    data: Annotated[str, typer.Option(help="A folder or file of images, or the name of a known data set.")],
    name: Annotated[str, typer.Option(help="What params.yaml is to call it.")],
    size: Annotated[int, typer.Option(min=8, max=256, help="Side of the square images that networks read, pixels.")],
    ipc: Annotated[
        int | None,
        typer.Option(min=1, help="Synthetic images per class of the first run, by default 1; of tuples all, by default a few."),
    ] = None,
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
    from src.settings.params import check_name

    check_name(name)
    from src.stages import init as stage

    told = {"splits": splits, "label_column": label_column, "path": path}
    stage.run(data, name, size, ipc, skip_broken=skip_broken, update=update, **told)


import_app = typer.Typer(help="Experts and synthetic sets that other code made.", no_args_is_help=True)
app.add_typer(import_app, name="import")
PathArgument = Annotated[Path, typer.Argument(help="What other code wrote.", show_default=False)]
NameOption = Annotated[str, typer.Option(help="What params.yaml is to call it.")]
PreparedOption = Annotated[str, typer.Option(help="The data set, prepared: a key of the section `prepare`.")]


@import_app.command("experts")
def import_experts(
    path: PathArgument,
    name: NameOption,
    dataset: PreparedOption,
    network: Annotated[str | None, typer.Option(help="Their network; found from the shapes where left out.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="So many trajectories; all where left out.")] = None,
    lr: Annotated[
        float, typer.Option(min=1e-9, help="What they were trained with, for the record; MTT's where left out.")
    ] = 0.01,
) -> None:
    """Bring expert buffers of MTT, FTD, ATT, TESLA or DATM: a folder of replay_buffer_N.pt, or one of them."""
    from src.settings.params import check_name, load

    check_name(name)
    params = load()
    params.dataset(dataset)
    from src.stages import importing
    from src.store.store import Store

    importing.experts(Store(), params, path, name, dataset, network, count, lr)


@import_app.command("synthetic")
def import_synthetic(
    path: PathArgument,
    name: NameOption,
    dataset: PreparedOption,
    network: Annotated[str, typer.Option(help="Of the students: a key of the section `networks`.")],
    evaluate: Annotated[str, typer.Option(help="Protocol: a key of the section `evaluate`.")],
    space: Annotated[Literal["pixels", "normalised", "whitened"], typer.Option(help="What the numbers are.")] = "pixels",
    figures: Annotated[
        str | None, typer.Option(help="Whose mean and std it was normalised by, as MTT's code has them: cifar10, cifar100, ...")
    ] = None,
    labels: Annotated[
        Literal["classes", "probabilities", "logits"] | None, typer.Option(help="What the labels are, where it is in doubt.")
    ] = None,
    labels_file: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Where the labels lie, if not with the images.")
    ] = None,
    syn_lr: Annotated[float | None, typer.Option(help="Learning rate of students; the file's where left out.")] = None,
    sure: Annotated[
        bool, typer.Option("--sure", help="Take --space and --labels at their word, whatever the numbers look like.")
    ] = False,
) -> None:
    """Bring a synthetic set: .pt, .npy, .npz, .safetensors, or a folder of images with a folder a class."""
    from src.settings.params import check_name, load

    check_name(name)
    params = load()
    params.dataset(dataset)
    from src.stages import importing
    from src.stages.importing import Told
    from src.store.store import Store

    told = Told(space, figures, labels, labels_file, syn_lr, sure)
    importing.synthetic(Store(), params, path, name, dataset, network, evaluate, told)


preset_app = typer.Typer(help="Ready settings of published experiments, to add to params.yaml.", no_args_is_help=True)
app.add_typer(preset_app, name="preset")
PresetArgument = Annotated[str, typer.Argument(help="A preset, as `preset list` names it.", show_default=False)]


@preset_app.command("list")
def preset_list(
    dataset: Annotated[str | None, typer.Option(help="Only presets of this data set, such as cifar10.")] = None,
    method: Annotated[str | None, typer.Option(help="Only presets of this method, as the table names it.")] = None,
) -> None:
    """Show all presets with the accuracy to compare with and the experts they need."""
    from src.stages import presets

    presets.show_all(dataset, method)


@preset_app.command("memory")
def preset_memory(
    memory: Annotated[list[float] | None, typer.Option(help="Of a GPU, GiB; may come several times. 24, 40 and 80.")] = None,
) -> None:
    """Show how every preset fits GPUs: experts side by side, or what to lower. Takes some minutes, and no GPU."""
    for one in memory or ():
        if not one > 0:
            raise UserError(f"--memory is {one:g}: give a GPU's memory in GiB, more than 0")
    from src.stages import plan_memory

    plan_memory.table(memory or (24, 40, 80))


@preset_app.command("show")
def preset_show(name: PresetArgument) -> None:
    """Show where a preset, or a group of runs, comes from and what it would add to params.yaml."""
    from src.stages import presets

    presets.show(name)


@preset_app.command("add")
def preset_add(
    name: PresetArgument,
    experts: Annotated[int | None, typer.Option(min=1, help="Experts to train; the preset's number where left out.")] = None,
) -> None:
    """Add a preset, or a group of runs, to params.yaml, whose comments and order stay."""
    from src.stages import presets

    presets.add(name, experts)
