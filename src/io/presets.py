"""Ready settings of published experiments, and starting points where nothing is published: the files of src/presets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

FOLDER = Path(__file__).parent.parent / "presets"
Tree = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """One run with all that it names."""

    name: str
    family: str  # the data set as papers call it; its entry of `prepare` may be one of several
    method: str  # AST, MTT, or a baseline
    ipc: int | str  # images per class, or 'all'
    status: str  # published, or ours: a starting point
    source: str
    ours: str  # what is not the source's
    note: str
    published: Mapping[str, float]  # method -> test accuracy in percent, of the same data set and ipc
    compare: str | None  # the method of `published` that this preset is best compared with
    sections: Mapping[str, Mapping[str, Tree]]  # section of params.yaml -> name -> settings

    @property
    def experts(self) -> int:
        """Experts that are matched; 0 for a baseline."""
        (settings,) = self.sections["experts"].values()
        return int(settings["count"]) if self.epochs else 0

    @property
    def epochs(self) -> int:
        """Epochs of each expert that are matched, max_start_epoch - 1 + expert_epochs; 0 for a baseline."""
        own = self.sections["runs"][self.name]["distill"]
        return int(own["max_start_epoch"] - 1 + own["expert_epochs"]) if "max_start_epoch" in own else 0


@cache
def load() -> Mapping[str, Preset]:
    """All presets by name, in the order of the file."""
    blocks, accuracies = _read("presets.yaml"), _read("accuracies.yaml")
    presets = [
        _preset(blocks, accuracies, dataset, recipe, ipc, cell)
        for dataset, recipes in blocks["cells"].items()
        for recipe, cells in recipes.items()
        for ipc, cell in cells.items()
    ]
    return {preset.name: preset for preset in presets}


def own_images(name: str, prepare: Tree, network: Tree, experts: Tree, distill: Tree) -> Preset:
    raise NotImplementedError


def _read(file: str) -> Tree:
    found: Tree = YAML(typ="safe").load((FOLDER / file).read_text(encoding="utf-8"))
    return found


def _preset(blocks: Tree, accuracies: Tree, dataset: str, recipe: str, ipc: int | str, cell: Tree) -> Preset:
    kind, family = blocks["recipes"][recipe], blocks["datasets"][dataset]["family"]
    parts = (family, recipe) if ipc == "all" else (family, f"ipc{ipc}", recipe)
    name = "-".join((*parts, cell["variant"]) if "variant" in cell else parts)
    published = accuracies.get(family, {}).get(ipc, {})
    return Preset(
        name=name,
        family=family,
        method=kind["title"],
        ipc=ipc,
        status=cell.get("status", kind["status"]),
        source=kind["source"],
        ours=kind["ours"],
        note=cell.get("note", ""),
        published=published,
        compare=next((method for method in kind["compare"] if method in published), None),
        sections=_sections(blocks, dataset, kind, name, ipc, cell["distill"]),
    )
