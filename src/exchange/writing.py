"""The formats of `export`, by their names: each is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from src.exchange.exported import Exported
from src.ground.errors import UserError

FORMATS = ("safetensors", "images", "pt", "huggingface", "ddranking")


def write(form: str, exported: Exported, folder: Path) -> None:
    """Write a set to a new or empty folder in the format of that name.

    Raises UserError where there is no such format, where it can't hold the set, or where the folder holds something.
    """
    check(form, exported.half)
    writer: Callable[[Exported, Path], None] = importlib.import_module(f"src.exchange.formats.{form}").write
    writer(exported, folder)


def write_many(form: str, sets: Sequence[Exported], folder: Path) -> None:
    """Write several sets to one folder, which huggingface alone can hold, as configurations of one data set."""
    check(form, any(one.half for one in sets))
    if form != "huggingface":
        raise UserError(f"--format {form} holds one set, and {len(sets)} are given: name one run, or take --format huggingface")
    from src.exchange.formats import huggingface

    huggingface.write_many(sets, folder)


def check(form: str, half: bool = False) -> None:
    """Raises UserError where there is no format of that name, or where it has no half precision."""
    if form not in FORMATS:
        raise UserError(f"--format {form} is none: choose one of {', '.join(FORMATS)}")
    if half and form != "safetensors":
        raise UserError(f"--half belongs to --format safetensors, not to {form}: leave it out")
