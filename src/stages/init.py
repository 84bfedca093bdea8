"""init: looks at images of your own and adds a first run on them to params.yaml. No stage: it makes no artifact."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from src.editing import presets
from src.editing.presets import Sections, Tree
from src.ground.counting import counted
from src.ground.errors import DataError, UserError
from src.maths.initialisation import check_ipc
from src.pages.tables import Table
from src.process import progress
from src.settings.datasets import Dataset, SplitFolders
from src.settings.params import Params, load
from src.sources import flaws, sentences
from src.sources.inspection import Inspection, inspect
from src.sources.named import KNOWN
from src.sources.parts import divided, fractions
from src.sources.reading import Source
from src.sources.sentences import shown
from src.stages import init_tuples
from src.stages.presets import add_data_set

DEPTHS = ((15, 2), (48, 3), (95, 4), (191, 5))  # largest side in pixels, blocks: pooling ends at 2x2 to 6x6; then 6
SMALL = 48  # pixels: beyond, the images take a larger learning rate, as published ones do
AUGMENTATION = ["color", "crop", "cutout", "flip", "scale", "rotate"]
STEPS = 16  # of an expert's epoch, at least, where batches of 16 images and more allow it
EXPERTS: Tree = {"count": 10, "epochs": 20, "clipping_epochs": 4}  # a fifth of the epochs is clipped, as in AST
FIRST_RUN: Tree = {"iterations": 500, "snapshot_every": 100, "syn_steps": 20, "max_start_epoch": 10}
MATCHED_STEPS = 20  # of the experts: fewer are a way too short to learn from
MOST_EPOCHS = 10  # that are matched: they and the latest start are within the experts' epochs
EXPERT_LR, LR_INIT, PACE = 0.003, 0.01, 1e-3  # AST's; lr_lr is PACE * lr_init^2, MTT's at 1 image per class
OPTIONS = ("skip_broken", "splits", "label_column", "path")  # of the data set, which is as it was where they are left out
SHOWN_CLASSES, SHOWN_SIZES = 20, 3
COLOURS = {1: "grey", 3: "in colour"}  # by channels


def run(
    data: str,
    name: str,
    size: int,
    ipc: int | None,
    *,
    skip_broken: bool = False,
    update: bool = False,
    splits: str | None = None,
    label_column: str | None = None,
    path: str | None = None,
) -> None:
    """Add the data set `name` with a first run of AST on it; `data` is a path, or the name of a known data set.

    `path` is where that lies, where it is not where its name says.

    Raises UserError, before anything is written, where the images don't allow it or params.yaml has other settings.
    """
    params = load()
    flaw = init_tuples.flaw(Path(data)) if (path, splits, label_column) == (None, None, None) else ""
    if flaw is None:
        return init_tuples.run(data, _place(data), name, size, ipc, skip_broken, update)
    ipc = 1 if ipc is None else ipc
    asked = Dataset(
        source=_place(data),
        size=size,
        skip_broken=skip_broken,
        splits=_told(splits),
        label_column=label_column,
        path=None if path is None else _place(path),
    )
    settings = _settings(params, name, asked)
    try:
        found = inspect(settings, name)
    except DataError as error:
        if not flaw:
            raise
        raise DataError(f"{error}; nor are these tuples, as {flaw}") from None
    _show(settings, found)
    _check(settings, found, name)
    images = _divide(params, settings, found.source, name, ipc)
    run_name = f"{name}-ipc{ipc}-ast"
    sections = _sections(settings, found, images, name, run_name, ipc)
    return add_data_set(params, sections, run_name, name, found.sha256, update, "images")


def _settings(params: Params, name: str, asked: Dataset) -> Dataset:
    """The data set as it is in params.yaml, or as it would be there; without its digest, so that other images can be read."""
    known = params.prepare.get(name)
    if known is None:
        return asked
    if (known.source, known.size) != (asked.source, asked.size):
        raise UserError(
            f"params.yaml has another prepare.{name}, with source {known.source} and size {known.size or 'null'}: "
            "take another --name, or that --data and --size"
        )
    for field in OPTIONS:
        wanted, there = getattr(asked, field), getattr(known, field)
        if wanted and wanted != there:
            text = f"params.yaml has prepare.{name} with {field} {_written(there)}"
            raise UserError(f"{text}: set prepare.{name}.{field}: {_written(wanted)} there, or take another --name")
    return known.model_copy(update={"sha256": None})


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _told(splits: str | None) -> SplitFolders | None:
    """What --splits says, as the setting has it."""
    if splits is None:
        return None
    if splits == "none":
        return "none"
    pairs = [pair.partition("=") for pair in splits.split(",")]
    folders = {split.strip(): folder.strip() for split, _, folder in pairs}
    if len(folders) == len(pairs):  # of a split that is told twice one folder would go without a word
        with contextlib.suppress(ValidationError):
            return TypeAdapter(SplitFolders).validate_python(folders)
    raise UserError(
        f"--splits is '{splits}': give none, or train=FOLDER with val=FOLDER and test=FOLDER if there are, each once"
    )


def _place(data: str) -> str:
    """A path inside the repository relative to its top, so that it holds for everybody; all else as it was given."""
    if shown(data) != data:
        raise UserError(
            f"the path {shown(data)} is no text that params.yaml can hold (UTF-8 without control characters): rename it"
        )
    path, top = Path(data), Path.cwd()
    if data in KNOWN or not path.exists() or not path.resolve().is_relative_to(top.resolve()):
        return data
    inside = path.resolve().relative_to(top.resolve()).as_posix()
    return f"./{inside}" if inside in KNOWN else inside  # a folder of that name, not the known data set


def _show(settings: Dataset, found: Inspection) -> None:
    """A table of what was found: classes with their images, sizes, channels."""
    table = Table(settings.source, *found.counts)
    for name in found.classes[:SHOWN_CLASSES]:
        table.add_row(name, *(f"{count[name]:,}" for count in found.counts.values()))
    if len(found.classes) > SHOWN_CLASSES:
        table.add_row(f"... {len(found.classes) - SHOWN_CLASSES} more classes")
    table.add_section()
    table.add_row(f"{len(found.classes)} classes", *(f"{sum(count.values()):,}" for count in found.counts.values()))
    console = Console(highlight=False, markup=False)
    console.print(table)
    sizes = ", ".join(f"{width}x{height} ({count:,})" for (width, height), count in found.sizes.most_common(SHOWN_SIZES))
    more = f" and {len(found.sizes) - SHOWN_SIZES} other sizes" if len(found.sizes) > SHOWN_SIZES else ""
    colours = " and ".join(f"{found.channels[key]:,} {word}" for key, word in COLOURS.items() if found.channels[key])
    line = f"{colours}; {sizes}{more}, which become {settings.size}x{settings.size}"
    source = found.source
    skipped = source.broken if settings.skip_broken else {}
    for said in (line, *sentences.of_source(source.notes, source.left_out, skipped)):
        console.print(said, markup=False, soft_wrap=True)


def _check(settings: Dataset, found: Inspection, name: str) -> None:
    """Say all problems. Raises DataError where one keeps the images from being used."""
    for problem in found.problems:
        progress.say(f"problem: {problem}")
    broken = found.source.broken
    if broken and not settings.skip_broken:
        text = f"{counted(len(broken), 'image')} can't be read, {sentences.broken(broken)}"
        raise DataError(f"{text}: repair or remove them, or leave them out with --skip-broken")
    if found.sha256 is None:
        raise DataError(f"the images can't be used as {name}: {found.problems[-1]}")


def _divide(params: Params, settings: Dataset, source: Source, name: str, ipc: int) -> int:
    """How many training images are left once the splits are cut off as `prepare` will.

    Raises DataError where a class keeps too few of them for this run, or for one that is there.
    """
    parts = divided(source, settings, name, params.seed)
    for problem in flaws.problems(source, parts):
        progress.say(f"problem: {problem}")
    labels = source.splits["train"].labels.numpy()
    given, kept = (np.bincount(some, minlength=len(source.classes)) for some in (labels, labels[parts["train"].places]))
    smallest = int(kept.argmin())
    if kept[smallest] < ipc:
        whole = f"{counted(int(given[smallest]), 'image')}{' that can be read' if source.broken else ''}"
        text = f"the class '{source.classes[smallest]}' keeps {kept[smallest]} of its {whole} for training"
        raise DataError(f"{text}, fewer than {ipc} per class: add images, or lower --ipc")
    for run_name, run in params.runs.items():
        if run.dataset == name and run.ipc != "all":
            check_ipc(run.ipc, dict(zip(source.classes, kept.tolist(), strict=True)), f"runs.{run_name}.ipc")
    return len(parts["train"].places)


def _sections(settings: Dataset, found: Inspection, images: int, name: str, run_name: str, ipc: int) -> Sections:
    size = settings.size or 0
    prepare = settings.model_dump(include={"source", "size"}) | {"sha256": found.sha256}
    prepare |= settings.model_dump(include=set(OPTIONS), exclude_defaults=True)
    prepare |= {f"{split}_fraction": value for split, value in fractions(settings, found.counts).items()}
    described = {"network": _network(size), "augmentation": AUGMENTATION, "prepare": prepare}
    own = {**FIRST_RUN, **_rates(images), "lr_img": 100.0 if size <= SMALL else 1000.0}
    experts = {**EXPERTS, "batch_size": _batch(images)}
    return presets.compose(run_name, "ast", name, described, ipc, own, experts)


def _network(size: int) -> str:
    return f"ConvNetD{next((depth for largest, depth in DEPTHS if size <= largest), 6)}W128"


def _rates(images: int) -> Tree:
    """Epochs to match, and the student's step size and its learning rate, for experts of so many real images.

    The student starts with steps by which it goes as far as the expert does, where that is less than is usual: one that goes
    too far only learns to take smaller steps, and at the smallest images learn nothing. For the same reason a step size changes
    by a small part of itself: the loss depends on it as a share, so that its own learning rate goes by the square.
    """
    steps = math.ceil(images / _batch(images))
    epochs = min(MOST_EPOCHS, max(2, math.ceil(MATCHED_STEPS / steps)))
    lr_init = min(LR_INIT, EXPERT_LR * epochs * steps / FIRST_RUN["syn_steps"])
    rounded = float(f"{lr_init:.2g}")
    return {"expert_epochs": epochs, "lr_init": rounded, "lr_lr": float(f"{PACE * rounded**2:.1g}")}


def _batch(images: int) -> int:
    """Real images of an expert's step: AST's 256, or fewer where an epoch would have too few steps."""
    return next((batch for batch in (256, 128, 64, 32) if images >= STEPS * batch), 16)
