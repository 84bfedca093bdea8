"""import: experts and synthetic sets that other code made, checked and put where the pipeline's own lie. No stage itself.

Both get their entries in params.yaml: a buffer is then matched, a set evaluated, compared and exported, as any other is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from src.editing import params_edit
from src.exchange import buffers, recognition, sets
from src.exchange.images import MTT_FIGURES
from src.exchange.sets import Options
from src.ground.errors import UserError
from src.loops import expert
from src.maths.networks import ImageShape
from src.maths.pixels import Normalisation, Space, Whitening
from src.process.progress import say
from src.settings import resolved
from src.settings.experts import Experts
from src.settings.networks import ConvNet, Network
from src.settings.params import Params
from src.settings.resolved import Buffer
from src.stages import work
from src.stages.records import experts_record, prepared
from src.store import tensors, values
from src.store.store import Store
from src.store.values import Record, Statistics

METHOD = "imported"


@dataclass(frozen=True)
class Told:
    """What a synthetic set does not say of itself; the rest is as `Options` has it."""

    space: str
    figures: str | None = None  # by whose mean and std it was normalised, where not by the data set's own
    labels: str | None = None
    labels_file: Path | None = None
    syn_lr: float | None = None
    sure: bool = False


# -- experts


def experts(
    store: Store, params: Params, path: Path, name: str, dataset: str, network: str | None, count: int | None, lr: float
) -> None:
    """Bring a buffer of MTT's family, `count` trajectories of it or all, as the experts `name` of a prepared data set.

    The network is the one named, or found from the parameters' shapes. Raises UserError or ArtifactError, with nothing written,
    where the buffer is damaged, foreign, or of another network.
    """
    data = resolved.data_set(params, dataset)
    statistics = prepared(store, data, "train", "val")
    shape, paths = statistics.image_shape, buffers.files_of(path)
    called, spec = _network(params, network, buffers.shapes_of(paths[0]), statistics)
    digest, found, epochs = _digest(paths, (spec, shape), count)
    settings: dict[str, Any] = {"dataset": dataset, "network": called, "count": found, "epochs": epochs, "lr": lr}
    settings["imported"] = digest
    networks = {} if called in params.networks else {called: _entry(spec)}
    added = params_edit.add({"networks": networks, "experts": {name: settings}})  # refuses other experts of this name
    buffer = Buffer(name, data, spec, Experts(**settings), params.seed, params.runtime)
    record = work.whole(experts_record(store, buffer), params.runtime, "experts", torch.device("cpu"))
    for index, trajectory in enumerate(islice(buffers.read(paths, (spec, shape)), found)):
        store.save_trajectory(name, index, trajectory.theta, replace(record, kind=values.trajectory_kind(index)))
    for doubt in recognition.doubts(spec, shape):
        say(f"{name}: {doubt}")
    say(f"{name}: {found} trajectories of {epochs} epochs, of {called}{_told(added)}")
    print(f"next: dvc repro experts@{name}")


def _digest(paths: Sequence[Path], asked: buffers.Asked, count: int | None) -> tuple[str, int, int]:
    """Of all trajectories that are wanted; how many these are, and of how many epochs. Reads everything once."""
    whole, found, epochs = hashlib.sha256(), 0, 0
    for trajectory in islice(buffers.read(paths, asked), count):
        whole.update(expert.digest(trajectory.theta).encode())
        found, epochs = found + 1, len(trajectory.theta) - 1
    if count is not None and found < count:
        raise UserError(f"the buffer holds {found} trajectories, fewer than the {count} of --count: ask for fewer")
    return whole.hexdigest(), found, epochs


def _network(params: Params, name: str | None, shapes: recognition.Shapes, statistics: Statistics) -> tuple[str, Network]:
    """The name and settings of the network that the experts are of."""
    if name is not None:
        return name, params.network(name)
    spec, candidates = recognition.network_of(shapes)
    shape = statistics.image_shape
    if shape not in candidates:
        sizes = " or ".join(f"{one.channels}x{one.size}x{one.size} and {one.classes} classes" for one in candidates)
        raise UserError(f"the experts are of images of {sizes}, not {_said(shape)}: name their data set")
    known = next((called for called, one in params.networks.items() if one == spec), None)
    return known or _called(spec), spec


def _said(shape: ImageShape) -> str:
    return f"{shape.channels}x{shape.size}x{shape.size} and {shape.classes} classes"


def _called(spec: ConvNet) -> str:
    norm = "" if spec.norm == "instance" else f"-{spec.norm}"
    return f"ConvNetD{spec.depth}W{spec.width}{norm}"


def _entry(spec: Network) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude_defaults=True)


# -- synthetic sets


def synthetic(
    store: Store, params: Params, path: Path, name: str, dataset: str, network: str, protocol: str, told: Told
) -> None:
    """Bring anybody's synthetic set as the run `name`, which is scored under a protocol and takes part in everything.

    Raises UserError or ArtifactError, with nothing written, where it is damaged, foreign, or not what it is said to be.
    """
    params.network(network)
    if protocol not in params.evaluate:
        raise UserError(f"no protocol is named '{protocol}': choose one of {', '.join(params.evaluate)}")
    statistics = prepared(store, resolved.data_set(params, dataset))
    found = sets.read(path, statistics.image_shape, _options(store, dataset, statistics, told))
    value = found.value
    for note in found.notes:
        say(f"{name}: {note}")
    run = {
        "dataset": dataset,
        "network": network,
        "experts": None,
        "ipc": max(1, len(value.pixels) // statistics.image_shape.classes),
    }
    given = {"file": name, "sha256": value.sha256()}
    own = {"method": METHOD, "lr_init": float(f"{value.syn_lr.item():.9g}"), "given": given}
    shared = {METHOD: {"initialisation": "given", "iterations": 0}}
    added = params_edit.add({"distill": shared, "runs": {name: {**run, "distill": own, "evaluate": protocol}}})
    tensors.save(store.imported_file(name), dict(vars(value)), Record(values.SYNTHETIC, {"imported": path.name}))
    say(f"{name}: {len(value.pixels)} images, syn_lr {value.syn_lr.item():.4g}{_told(added)}")
    print(f"next: git add -f {store.imported_file(name)}; dvc repro evaluate@{name}")


def _options(store: Store, dataset: str, statistics: Statistics, told: Told) -> Options:
    """With the data set's own space, where the images are in it."""
    return Options(
        space=told.space,  # type: ignore[arg-type] # the command line lets no other word pass
        of=_space(store, dataset, statistics, told),
        labels=told.labels,  # type: ignore[arg-type]
        labels_file=told.labels_file,
        syn_lr=told.syn_lr,
        class_names=statistics.classes,
        sure=told.sure,
    )


def _space(store: Store, dataset: str, statistics: Statistics, told: Told) -> Space | None:
    if told.figures is not None and told.space != "normalised":
        raise UserError(f"--figures says how images were normalised, and these are {told.space}: leave it out")
    if told.space == "whitened":
        found = store.load_space(dataset)
        if not isinstance(found, Whitening):
            raise UserError(f"{dataset} is not whitened, so nothing tells how the images were: prepare it with whitening zca")
        return found
    if told.space == "pixels":
        return None
    if told.figures is None:
        return Normalisation(torch.tensor(statistics.mean), torch.tensor(statistics.std))
    if told.figures not in MTT_FIGURES:
        raise UserError(f"--figures is '{told.figures}': choose one of {', '.join(MTT_FIGURES)}")
    mean, std = (torch.tensor(one) for one in MTT_FIGURES[told.figures])
    return Normalisation(mean, std)


def _told(added: Sequence[str]) -> str:
    return f"; added to params.yaml: {', '.join(added)}" if added else "; params.yaml has all of it already"
