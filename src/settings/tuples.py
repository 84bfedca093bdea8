"""What goes together where the task is tuples: sections of params.yaml against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from src.settings.datasets import Dataset
from src.settings.distillation import Distillation
from src.settings.experts import Experts
from src.settings.networks import Encoders, Network
from src.settings.protocols import Protocol

READERS = {  # kinds of modalities -> families of encoders that read them
    "image": ("ConvNet", "MLP", "LeNet", "AlexNet", "VGG11", "ResNet18"),
    "audio": ("ConvNet", "MLP", "LeNet", "AlexNet", "VGG11", "ResNet18"),
    "text": ("TextNet", "Linear"),
    "vector": ("Linear", "MLP"),
    "features": ("Linear", "MLP"),
}
BEGINNINGS = ("random", "noise", "herding", "k_center", "run")  # initialisations that tuples have

Found = Iterator[tuple[str, str]]  # place in params.yaml and what is wrong there


def problems(named: Mapping[str, Mapping[str, Any]], distillations: Mapping[str, Distillation]) -> Found:
    """All of it; names that are not there are told elsewhere."""
    for section in ("experts", "runs"):
        for name, entry in named[section].items():
            dataset = named["prepare"].get(entry.dataset)
            for network in (entry.network, *getattr(entry, "cross", ())):
                spec = named["networks"].get(network)
                if dataset is not None and spec is not None:
                    place = f"{section}.{name}.network"
                    yield from ((place, text) for text in unread(entry.dataset, dataset, network, spec))
    of_tuples = {name for name, dataset in named["prepare"].items() if dataset.modalities is not None}
    for name, experts in named["experts"].items():
        yield from _experts(f"experts.{name}", experts, experts.dataset in of_tuples)
    for name, run in named["runs"].items():
        protocol, distil = named["evaluate"].get(run.evaluate), distillations.get(name)
        if protocol is not None:
            yield from _protocol(f"runs.{name}.evaluate", run.evaluate, protocol, run.dataset in of_tuples)
        if distil is not None and run.dataset in of_tuples:
            yield from _distillation(f"runs.{name}.distill", distil, named["prepare"][run.dataset])
        elif distil is not None and run.dataset in named["prepare"]:
            yield from _no_tuples(f"runs.{name}.distill", distil)


def unread(called: str, dataset: Dataset, network: str, spec: Network) -> Iterator[str]:
    """What keeps a network from reading a data set: of tuples it has an encoder for each modality, that reads its kind."""
    modalities = dataset.modalities or {}
    if not isinstance(spec, Encoders):
        if modalities:
            yield f"'{network}' reads images alone, and '{called}' is of tuples: name a network of the family Encoders"
        return
    if list(spec.encoders) != list(modalities):
        have = ", ".join(modalities) or "none"
        yield f"'{network}' has encoders of {', '.join(spec.encoders)}, '{called}' has the modalities {have}: make them equal"
        return
    for name, encoder in spec.encoders.items():
        kind = modalities[name].kind
        if encoder.family not in READERS[kind]:
            text = f"'{network}' has the family {encoder.family} for {name}, which is of kind {kind}"
            yield f"{text}: choose from {', '.join(READERS[kind])}"


def _experts(place: str, experts: Experts, tuples: bool) -> Found:
    if not tuples and experts.contrast is not None:
        yield f"{place}.contrast", "is the loss of tuples, and its data set has images in classes: leave it out"
    of_images = {
        "augmentation": bool(experts.augmentation),
        "gradient_penalty": experts.gradient_penalty > 0,
        "imported": experts.imported is not None,
    }
    for name in [name for name, is_on in of_images.items() if is_on and tuples]:
        yield f"{place}.{name}", "is of images in classes, and its data set is of tuples: leave it out"


def _protocol(place: str, called: str, protocol: Protocol, tuples: bool) -> Found:
    if not tuples and protocol.contrast is not None:
        yield (
            place,
            f"evaluate.{called}.contrast is the loss of tuples, and the data set has images in classes: name another one",
        )
    if tuples and protocol.augmentation:
        yield place, f"evaluate.{called}.augmentation is of images in classes, and the data set is of tuples: name one without"


def _distillation(place: str, own: Distillation, dataset: Dataset) -> Found:
    names = list(dataset.modalities or {})
    if own.initialisation not in BEGINNINGS:
        yield f"{place}.initialisation", f"'{own.initialisation}' needs classes: tuples begin by one of {', '.join(BEGINNINGS)}"
    if own.lr_modalities is not None and list(own.lr_modalities) != names:
        yield f"{place}.lr_modalities", f"must name the modalities {', '.join(names)}, in this order, or be left out"
    if own.similarity is not None and not own.iterations:
        yield f"{place}.similarity", "is learned over iterations, which are 0: set iterations, or leave it out"
    of_images = {
        "augmentation": bool(own.augmentation),
        "labels": own.labels != "fixed",
        "objective": own.objective != "matching",
        "unmatched_depth": own.unmatched_depth > 0,  # it would begin with all of the first modality's encoder
    }
    for name in [name for name, is_on in of_images.items() if is_on]:
        yield f"{place}.{name}", "is of images in classes, and the data set is of tuples: leave it out"


def _no_tuples(place: str, own: Distillation) -> Found:
    of_tuples = {
        "contrast": own.contrast is not None,
        "similarity": own.similarity is not None,
        "lr_modalities": own.lr_modalities is not None,
        "normalised": own.normalised != "all",
    }
    for name in [name for name, is_on in of_tuples.items() if is_on]:
        yield f"{place}.{name}", "is of tuples, and the data set has images in classes: leave it out"
