"""Ready settings of published experiments, and starting points where nothing is published: the files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from src.settings.distillation import Distillation

FOLDER = Path(__file__).parent
Tree = dict[str, Any]
Sections = Mapping[str, Mapping[str, Tree]]  # section of params.yaml -> name -> settings


@dataclass(frozen=True)
class Preset:
    """One run with all that it names, the run that it begins with among it."""

    name: str
    family: str  # the data set as papers call it; its entry of `prepare` may be one of several
    method: str  # the recipe, such as ast, mtt or random
    ipc: int | str  # images per class, or 'all'
    status: str  # published, or ours: a starting point
    source: str
    ours: str  # what is not the source's
    note: str
    published: Mapping[str, float]  # method -> test accuracy in percent, of the same data set and ipc
    compare: str | None  # the method of `published` that this preset is best compared with
    sections: Sections

    @property
    def experts(self) -> int:
        """Experts that are matched; 0 for a baseline."""
        return sum(int(settings["count"]) for settings in self.sections["experts"].values()) if self.epochs else 0

    @property
    def epochs(self) -> int:
        """Epochs of each expert that are matched, by the run or by that which it begins with; 0 for a baseline."""
        return max(self._epochs(run) for run in self.sections["runs"])

    def _epochs(self, run: str) -> int:
        own = dict(self.sections["runs"][run]["distill"])
        settings = Distillation(**{**self.sections["distill"][own.pop("method")], **own})
        return settings.last_epoch if settings.matches else 0


@cache
def load() -> Mapping[str, Preset]:
    """All presets by name: by data set, images per class and recipe."""
    blocks, accuracies = shared_blocks(), read("accuracies.yaml")
    presets = [
        _preset(blocks, accuracies, dataset, recipe, ipc, cell)
        for dataset, recipes in blocks["cells"].items()
        for recipe, cells in recipes.items()
        for ipc, variants in cells.items()
        for cell in _variants(variants)
    ]
    families = [dataset["family"] for dataset in blocks["datasets"].values()]
    recipes = list(blocks["recipes"])

    def place(preset: Preset) -> tuple[int, float, int]:
        ipc = float("inf") if preset.ipc == "all" else float(preset.ipc)
        return families.index(preset.family), ipc, recipes.index(preset.method)

    return {preset.name: preset for preset in sorted(presets, key=place)}


def compose(
    name: str, recipe: str, dataset: str, described: Tree, ipc: int | str, own: Tree, experts: Tree, variant: str = ""
) -> Sections:
    """The sections of params.yaml for a run: the recipe's blocks with the run's `own` values of `distill`.

    `described` is a data set as in the block `datasets`; `experts` are values that go before the recipe's; `variant` goes
    behind the buffer's name.
    """
    blocks = shared_blocks()
    kind, network, augmentation = blocks["recipes"][recipe], described["network"], described["augmentation"]
    method, protocol = kind["method"], for_augmentation(kind["evaluate"], augmentation)
    buffer = "-".join(filter(None, (dataset, kind["experts"], variant))) if kind["experts"] else None
    shared = blocks["methods"][method]
    if shared.get("iterations") != 0:  # a baseline augments nothing
        method, shared = for_augmentation(method, augmentation), {**shared, "augmentation": augmentation}
    trained = {"dataset": dataset, "network": network, **blocks["experts"].get(kind["experts"], {}), **experts}
    run = {"dataset": dataset, "network": network, "experts": buffer, "ipc": ipc}
    return {
        "prepare": {dataset: described["prepare"]},
        "networks": {network: blocks["networks"][network]},
        "experts": {buffer: {**trained, "augmentation": augmentation}} if buffer else {},
        "distill": {method: shared},
        "evaluate": {protocol: {**blocks["protocols"][kind["evaluate"]], "augmentation": augmentation}},
        "runs": {name: {**run, "distill": {"method": method, **own}, "evaluate": protocol}},
    }


def for_augmentation(name: str, augmentation: Sequence[str]) -> str:
    """The name of a method or protocol with this augmentation."""
    return name if "flip" in augmentation else f"{name}-no-flip"


@cache
def shared_blocks() -> Tree:
    """What presets are put together from."""
    return read("presets.yaml")


def read(file: str) -> Tree:
    """A file beside this module."""
    found: Tree = YAML(typ="safe").load((FOLDER / file).read_text(encoding="utf-8"))
    return found


def _variants(cells: Tree | list[Tree]) -> list[Tree]:
    return cells if isinstance(cells, list) else [cells]


def _preset(blocks: Tree, accuracies: Tree, dataset: str, recipe: str, ipc: int | str, cell: Tree) -> Preset:
    kind, described = blocks["recipes"][recipe], dict(blocks["datasets"][dataset])
    described["network"] = cell.get("network", described["network"])
    family = described["family"]
    parts = (family, recipe) if ipc == "all" else (family, f"ipc{ipc}", recipe)
    variant, experts = cell.get("variant", ""), cell.get("experts", {})
    other = variant if experts or "network" in cell else ""  # a variant of the run alone shares the experts
    name = "-".join((*parts, variant) if variant else parts)
    own: Tree = cell["distill"]
    begun: Sections = {}
    begins = cell.get("begins", kind.get("begins"))
    if begins:  # with what another recipe's run made, of the same variant if none is named
        cells = _variants(blocks["cells"][dataset][begins["recipe"]][ipc])
        (same,) = (one for one in cells if one.get("variant", "") == begins.get("variant", variant))
        first = _preset(blocks, accuracies, dataset, begins["recipe"], ipc, same)
        own, begun = {"initial_run": first.name, **own}, first.sections
    sections = compose(name, recipe, dataset, described, ipc, own, experts, other)
    published, status = accuracies.get(family, {}).get(ipc, {}), cell.get("status", kind["status"])
    return Preset(
        name=name,
        family=family,
        method=recipe,
        ipc=ipc,
        status=status,
        source=kind["source"],
        ours=kind["ours"] if status == kind["status"] else "a starting point, to be tuned",
        note=cell.get("note", ""),
        published=published,
        compare=next((method for method in kind["compare"] if method in published), None),
        sections={section: {**begun.get(section, {}), **entries} for section, entries in sections.items()},
    )
