"""Presets of tuples, a group of runs each: tuples.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from src.editing import presets
from src.editing.presets import Sections, Tree

CHOSEN = ("random", "herding", "k_center")  # real tuples as they are


@dataclass(frozen=True)
class TuplePreset:
    """Runs of one data set of tuples, with all that they name."""

    name: str
    about: tuple[str, ...]  # sentences
    status: str  # published, but for the encoders, or ours
    sections: Sections

    @property
    def runs(self) -> tuple[str, ...]:
        return tuple(self.sections["runs"])


@cache
def load() -> Mapping[str, TuplePreset]:
    """All of them by name."""
    found = presets.read("tuples.yaml")
    ours = {
        name: _ours(name, group, found["digits"], found["similarities"]) for name, group in found["digits"]["groups"].items()
    }
    return {**ours, **{preset.name: preset for preset in _published(found["published"])}}


def _ours(name: str, group: Tree, own: Tree, similarities: Tree) -> TuplePreset:
    """Runs of real, distilled and all tuples, at each number of tuples."""
    shared = {"dataset": name, "network": f"{name}-encoders"}
    distill: Tree = {f"{name}-{kind}": _method(own, parts) for kind, parts in similarities.items()}
    distill |= {f"{name}-{kind}": {"initialisation": kind, **own["real"]} for kind in CHOSEN}
    runs: Tree = {}
    for count in own["counts"]:
        for method, settings in distill.items():
            told = {"ipc": count, "distill": {"method": method}, "evaluate": f"{name}-protocol"}
            asks = settings["iterations"] or settings["initialisation"] != "random"
            run = method.removeprefix(f"{name}-").replace("_", "-")
            runs[f"{name}-{count}-{run}"] = {**shared, "experts": name if asks else None, **told}
    whole = {"ipc": "all", "distill": {"method": f"{name}-random"}, "evaluate": f"{name}-whole-protocol"}
    runs[f"{name}-whole"] = {**shared, "experts": None, **whole}
    sections: Sections = {
        "prepare": {name: {"source": name, "modalities": group["modalities"]}},
        "networks": {shared["network"]: {"family": "Encoders", "embedding": 32, "encoders": group["encoders"]}},
        "experts": {name: {**shared, **own["experts"], "contrast": own["contrast"]}},
        "distill": distill,
        "evaluate": {
            f"{name}-protocol": {**own["evaluate"], "contrast": own["contrast"]},
            f"{name}-whole-protocol": {**own["whole"], "contrast": own["contrast"]},
        },
        "runs": runs,
    }
    return TuplePreset(name, (f"{name}: {group['about']}; ours", *_next(sections)), "ours", sections)


def _method(own: Tree, parts: Tree) -> Tree:
    return {**own["distill"], "contrast": own["contrast"], **parts}


def _published(own: Tree) -> Iterator[TuplePreset]:
    """A run each; the data sets lie where their name says, or where prepare's path does."""
    for method, kind in own["methods"].items():
        for dataset, counts in kind["own"].items():
            for count, given in counts.items():
                name, figure = f"{dataset}-{count}-{method}", kind["figures"].get(dataset, {}).get(count)
                shared = {"dataset": dataset, "network": "image-text-encoders"}
                values = dict(given)
                pairs, contrast = values.pop("pairs", count), values.get("contrast", kind["contrast"])
                protocol = f"{name if 'contrast' in values else method}-protocol"
                run = {**shared, "experts": f"{dataset}-infonce", "ipc": pairs, "evaluate": protocol}
                sections: Sections = {
                    "prepare": {dataset: {"source": f"data/sources/{dataset}", "modalities": own["modalities"]}},
                    "networks": {
                        shared["network"]: {
                            "family": "Encoders",
                            "embedding": own["embedding"],
                            "encoders": own["encoders"],
                        }
                    },
                    "experts": {f"{dataset}-infonce": {**shared, **own["experts"]}},
                    "distill": {method: {**own["shared"], **kind["distill"], "contrast": kind["contrast"]}},
                    "evaluate": {protocol: {**own["evaluate"], "contrast": contrast}},
                    "runs": {name: {**run, "distill": {"method": method, **values}}},
                }
                told = f"Published recall at 1, 5, 10, %: {figure}" if figure else "Its published recall is not noted here"
                of_whole = f"; of all pairs {own['whole']}" if dataset == "flickr30k" else ""
                about = (
                    f"{name}: {method} on {pairs} pairs of {dataset}; published settings, but for encoders, text, "
                    "iterations and evaluation",
                    f"Source: {kind['source']}.",
                    "Theirs: NFNet-l0 for pictures, trained, and BERT for texts, frozen, with a projection of its embeddings.",
                    "Ours: small encoders, pictures of 64x64 pixels and texts as characters. With BERT's weights on disk, the "
                    "modality {kind: features, encoder: transformers, weights: FOLDER} and an encoder Linear are theirs.",
                    f"{told}{of_whole}.",
                    f"Put the pictures and Karpathy's dataset_{dataset}.json into data/sources/{dataset}.",
                )
                yield TuplePreset(name, (*about, *_next(sections)), "published", sections)


def _next(sections: Sections) -> Iterator[str]:
    """Commands."""
    for run in sections["runs"]:
        yield f"dvc repro evaluate@{run}"
