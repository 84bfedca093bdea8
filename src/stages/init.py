"""init: looks at images of your own and adds a first run on them to params.yaml. No stage: it makes no artifact."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console

from src.ground.errors import DataError, UserError
from src.ground.params import NAME, Params, load
from src.ground.settings import Dataset
from src.io import params_edit, presets, progress
from src.io.presets import Sections, Tree
from src.io.sources.inspection import Inspection, inspect
from src.io.sources.named import KNOWN
from src.io.tables import Table
from src.stages.presets import report_added

DEPTHS = ((15, 2), (48, 3), (95, 4), (191, 5))  # largest side in pixels, blocks: pooling ends at 2x2 to 6x6; then 6
SMALL = 48  # pixels: beyond, the images take a larger learning rate, as published ones do
AUGMENTATION = ["color", "crop", "cutout", "flip", "scale", "rotate"]
STEPS = 16  # of an expert's epoch, at least, where batches of 16 images and more allow it
EXPERTS: Tree = {"count": 10, "epochs": 20, "clipping_epochs": 4}  # a fifth of the epochs is clipped, as in AST
FIRST_RUN: Tree = {"iterations": 500, "snapshot_every": 100, "syn_steps": 20, "max_start_epoch": 10}
MATCHED_STEPS = 20  # of the experts: fewer are a way too short to learn from
MOST_EPOCHS = 10  # that are matched: they and the latest start are within the experts' epochs
EXPERT_LR, LR_INIT, PACE = 0.003, 0.01, 1e-3  # AST's; lr_lr is PACE * lr_init^2, MTT's at 1 image per class
SHOWN_CLASSES, SHOWN_SIZES, SHOWN_BROKEN = 20, 3, 5
COLOURS = {1: "grey", 3: "in colour"}  # by channels


def run(data: str, name: str, size: int, ipc: int, skip_broken: bool, update: bool) -> None:
    """Add the data set `name` with a first run of AST on it; `data` is a path, or the name of a known data set.

    Raises UserError, before anything is written, where the images don't allow it or params.yaml has other settings.
    """
    params = load()
    settings = _settings(params, data, name, size, skip_broken)
    found = inspect(settings, name)
    _show(settings, found)
    _check(settings, found, name, ipc)
    known, run_name = params.prepare.get(name), f"{name}-ipc{ipc}-ast"
    changed = known is not None and known.sha256 != found.sha256
    if changed and not update:
        raise UserError(f"the images of {name} are not those that prepare.{name}.sha256 says: add --update to take them")
    added = params_edit.add(_sections(params, settings, found, name, run_name, ipc))
    if changed:
        params_edit.set_value(("prepare", name, "sha256"), found.sha256)
        progress.say(f"prepare.{name}.sha256 is {found.sha256} now")
    report_added(added, run_name)


def _settings(params: Params, data: str, name: str, size: int, skip_broken: bool) -> Dataset:
    """The data set as it is in params.yaml, or as it would be there; without its digest, so that other images can be read."""
    if not NAME.fullmatch(name):
        raise UserError(f"'{name}' can't be a name: take letters, digits, '.', '_', '-', and start with one of the first two")
    source = _source(data)
    known = params.prepare.get(name)
    if known is None:
        return Dataset(source=source, size=size, skip_broken=skip_broken)
    if (known.source, known.size) != (source, size):
        raise UserError(
            f"params.yaml has another prepare.{name}, with source {known.source} and size {known.size or 'null'}: "
            "take another --name, or that --data and --size"
        )
    if skip_broken and not known.skip_broken:
        raise UserError(f"params.yaml has prepare.{name} without skip_broken: set prepare.{name}.skip_broken: true there")
    return known.model_copy(update={"sha256": None})


def _source(data: str) -> str:
    """A path inside the repository relative to its top, so that it holds for everybody; all else as it was given."""
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
    console.print(line, markup=False, soft_wrap=True)


def _check(settings: Dataset, found: Inspection, name: str, ipc: int) -> None:
    """Say all problems. Raises DataError where one keeps the images from being used with so many per class."""
    for problem in found.problems:
        progress.say(f"problem: {problem}")
    listed = ", ".join(found.broken[:SHOWN_BROKEN]) + (", ..." if len(found.broken) > SHOWN_BROKEN else "")
    if found.broken and not settings.skip_broken:
        text = f"{len(found.broken)} of the images can't be read ({listed})"
        raise DataError(f"{text}: repair or remove them, or leave them out with --skip-broken")
    if found.broken:
        progress.say(f"left out, as they can't be read: {listed}")
    if found.sha256 is None:
        raise DataError(f"the images can't be used as {name}: {found.problems[-1]}")
    counts = found.counts["train"]
    smallest = min(counts, key=lambda class_name: counts[class_name])
    left = _left(settings, found, counts[smallest])
    if left < ipc:
        text = f"the class '{smallest}' keeps {left} of its {counts[smallest]} images for training, fewer than {ipc} per class"
        raise DataError(f"{text}: add images, or lower --ipc")


def _left(settings: Dataset, found: Inspection, count: int) -> int:
    """Training images of so many, at least, once the splits that the source does not have are cut off."""
    return int(count * (1 - sum(_fractions(settings, found).values())) + 1e-9)


def _fractions(settings: Dataset, found: Inspection) -> Tree:
    """The fractions of the splits that the source does not have."""
    fractions = settings.model_dump(include={"val_fraction", "test_fraction"})
    return {field: value for field, value in fractions.items() if field.removesuffix("_fraction") not in found.counts}


def _sections(params: Params, settings: Dataset, found: Inspection, name: str, run_name: str, ipc: int) -> Sections:
    """What is to be added; a data set and experts that are there may have been changed by hand, and stay."""
    size = settings.size or 0
    prepare = settings.model_dump(include={"source", "size"}) | {"sha256": found.sha256}
    prepare |= {"skip_broken": True} if settings.skip_broken else {}
    prepare |= _fractions(settings, found)
    described = {"network": _network(size), "augmentation": AUGMENTATION, "prepare": prepare}
    images = _left(settings, found, sum(found.counts["train"].values()))
    own = {**FIRST_RUN, **_rates(images), "lr_img": 100.0 if size <= SMALL else 1000.0}
    experts = {**EXPERTS, "batch_size": _batch(images)}
    new = presets.compose(run_name, "ast", name, described, ipc, own, experts)
    kept = {"prepare": params.prepare, "experts": params.experts}
    return {
        section: {key: entry for key, entry in entries.items() if key not in kept.get(section, {})}
        for section, entries in new.items()
    }


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
