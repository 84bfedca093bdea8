"""Groups of runs that one table compares, a run a method and number of images per class, at one budget: groups.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from src.editing import presets
from src.editing.presets import Sections, Tree
from src.ground.errors import UserError
from src.settings.params import Params

PROTOCOL = "mtt-protocol"


@dataclass(frozen=True)
class Group:
    """Runs of one data set with all that they name."""

    name: str
    tables: Mapping[int, tuple[str, ...]]  # images per class -> its runs, the one that others are compared with first
    sections: Sections

    def method(self, ipc: int, run: str) -> str:
        """Whose run it is."""
        return run.removeprefix(_run(self.name, ipc, ""))


@cache
def load() -> Mapping[str, Group]:
    """All groups by name."""
    found = presets.read("groups.yaml")
    return {name: _group(name, group, found["methods"], found["experts"]) for name, group in found["groups"].items()}


def asked(params: Params, names: Sequence[str]) -> list[Group]:
    """The groups of these names, or none, where all names are runs'. Raises UserError where they are mixed or not added."""
    known = load()
    found = [known[name] for name in names if name in known and name not in params.runs]
    if found and len(found) < len(names):
        other = next(name for name in names if name not in known or name in params.runs)
        raise UserError(f"methods takes groups or runs, and got the group {found[0].name} and {other}: name either alone")
    for group in found:
        if any(run not in params.runs for runs in group.tables.values() for run in runs):
            raise UserError(f"params.yaml lacks runs of the group {group.name}: `python -m src.cli preset add {group.name}`")
    return found


def _group(name: str, group: Tree, methods: Tree, experts: Tree) -> Group:
    blocks, dataset = presets.shared_blocks(), group["dataset"]
    described = blocks["datasets"][dataset]
    network, augmentation = described["network"], described["augmentation"]
    protocol = presets.for_augmentation(PROTOCOL, augmentation)
    shared = {"dataset": dataset, "network": network, "evaluate": protocol}
    trained = {"dataset": dataset, "network": network, **group["experts"]}
    buffers = {
        f"{name}-{kind}": {**trained, **parts, **group["own_experts"].get(kind, {}), "augmentation": augmentation}
        for kind, parts in experts.items()
    }
    distill = {
        f"{name}-{method}": {
            **_shared(group, kind),
            **kind["distill"],
            **group["own"].get(method, {}),
            "augmentation": augmentation,
        }
        for method, kind in methods.items()
    }
    runs = {
        _run(name, ipc, method): {
            **shared,
            "experts": f"{name}-{kind['experts']}" if kind["experts"] else None,
            "ipc": ipc,
            "distill": {"method": f"{name}-{method}", **_shared(own, kind), **dict(_beginning(name, ipc, kind))},
        }
        for ipc, own in group["ipc"].items()
        for method, kind in methods.items()
    }
    sections: Sections = {
        "prepare": {dataset: described["prepare"]},
        "networks": {network: blocks["networks"][network]},
        "experts": buffers,
        "distill": distill,
        "evaluate": {protocol: {**blocks["protocols"][PROTOCOL], "augmentation": augmentation}},
        "runs": runs,
    }
    return Group(name, {ipc: tuple(_run(name, ipc, method) for method in methods) for ipc in group["ipc"]}, sections)


def _run(name: str, ipc: int, method: str) -> str:
    return f"{name}-ipc{ipc}-{method}"


def _shared(values: Tree, kind: Tree) -> Tree:
    """What methods of a kind share."""
    return {**values.get("distill", {}), **(values.get("matching", {}) if kind["experts"] else {})}


def _beginning(name: str, ipc: int, kind: Tree) -> Iterator[tuple[str, str]]:
    if "begins" in kind:
        yield "initial_run", _run(name, ipc, kind["begins"])
