"""Puts the script train_on_it.py, and what it needs, into an exported folder.

The script is a template and the reader of the folder's format, both modules that are checked like all others: the template's
import of a reader is replaced by that reader's functions, so that the result is one file that imports nothing from here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from src.exchange.exported import Exported
from src.settings.networks import ConvNet
from src.store import files

TEMPLATES = Path(__file__).parent / "templates"
SCRIPT, SETTINGS, SPACE = "train_on_it.py", "set.json", "space.pt"
READER = re.compile(r"^from src\.exchange\.templates\.\w+ import read\n", re.MULTILINE)
PLACE = "# -- the network\n"  # before which the reader's functions go


def add(exported: Exported, form: str, card: Mapping[str, Any], place: Path) -> None:
    """Write set.json, the whitening where there is one and, for a ConvNet, the script for the format's folder."""
    files.write_json(place / SETTINGS, card)
    if exported.whitening is not None:
        torch.save({"mean": exported.whitening.mean.cpu(), "matrix": exported.whitening.matrix.cpu()}, place / SPACE)
    if isinstance(exported.network, ConvNet):
        files.write_text(place / SCRIPT, assembled(form))


def assembled(form: str) -> str:
    """The text of the script for folders of a format."""
    template = (TEMPLATES / SCRIPT).read_text(encoding="utf-8")
    reader = (TEMPLATES / f"read_{form}.py").read_text(encoding="utf-8")
    functions = reader[re.search(r"^def ", reader, re.MULTILINE).start() :]  # type: ignore[union-attr]
    head, found, tail = READER.sub("", template).partition(PLACE)
    assert found, "the template lacks the reader's place"
    return re.sub(r"\n{3,}(from |import )", r"\n\1", f"{head}# -- the set\n\n\n{functions}\n\n{found}{tail}")
