"""Data sets and ready settings, added to params.yaml."""

from __future__ import annotations

from typing import Annotated

import typer

from src.cli.app import app


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
    from src.settings.params import check_name

    check_name(name)
    from src.stages import init as stage

    told = {"splits": splits, "label_column": label_column, "path": path}
    stage.run(data, name, size, ipc, skip_broken=skip_broken, update=update, **told)


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
