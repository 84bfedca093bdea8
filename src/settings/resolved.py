"""Runs resolved: params.yaml's names followed once, into frozen values that hold all that a stage needs.

Behind this door no one looks anything up: a stage takes its value and the store of artifacts, and knows no params.yaml.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from src.ground.errors import UserError
from src.settings import tuples
from src.settings.datasets import Dataset
from src.settings.distillation import Distillation
from src.settings.experts import Experts
from src.settings.networks import Network
from src.settings.params import Params
from src.settings.protocols import Protocol
from src.settings.runtime import Runtime


@dataclass(frozen=True)
class Asked:
    """What a run wants of its data set."""

    ipc: int | Literal["all"]
    distillation: Distillation
    networks: Mapping[str, Network]  # all that read its images, by name

    @property
    def drawn(self) -> int | None:
        """Images of each class, or tuples, that it begins with; None where that is a set that is there, or all real ones."""
        return None if self.ipc == "all" or self.distillation.initialisation in ("given", "run") else self.ipc


@dataclass(frozen=True)
class DataSet:
    """What `prepare` makes."""

    name: str
    settings: Dataset
    seed: int  # root of the draws that split it
    asked: Mapping[str, Asked]  # by run

    @property
    def tuples(self) -> bool:
        """Whether it holds tuples of modalities, and not images in classes."""
        return self.settings.modalities is not None

    @property
    def headline(self) -> str:
        """What students are judged by, as metrics name it: accuracy, or of tuples the mean recall."""
        return "recall" if self.tuples else "accuracy"


@dataclass(frozen=True)
class Buffer:
    """What `experts` makes."""

    name: str
    dataset: DataSet
    spec: Network
    settings: Experts
    seed: int
    runtime: Runtime
    needed: int | None = None  # the last epoch that any run matches; None where none does


@dataclass(frozen=True)
class Run:
    """What `distill` and `evaluate` make."""

    name: str
    dataset: DataSet
    network: str  # the name of `spec`
    spec: Network
    buffer: Buffer | None  # of a baseline none
    ipc: int | Literal["all"]
    method: str  # the name of what `distillation` starts from
    distillation: Distillation
    protocol: str  # the name of `evaluation`
    evaluation: Protocol
    initial: Run | None  # the one whose synthetic set this begins with
    cross: Mapping[str, Network]
    seed: int
    runtime: Runtime

    @property
    def experts(self) -> Buffer:
        """The buffer of a run that matches it or has it choose images; params.yaml is refused where such a run has none."""
        assert self.buffer is not None
        return self.buffer

    @property
    def trained(self) -> Experts | None:
        """The experts that are trained for it; None where they are imported, or it has none."""
        return None if self.buffer is None or self.buffer.settings.imported is not None else self.buffer.settings

    @property
    def initials(self) -> tuple[Run, ...]:
        """The runs whose synthetic sets come before this one's, the nearest first."""
        return () if self.initial is None else (self.initial, *self.initial.initials)

    @property
    def networks(self) -> dict[str, Network]:
        """All that fresh students are scored with, the own one first."""
        return {self.network: self.spec, **self.cross}


@dataclass(frozen=True)
class Pipeline:
    """Everything that params.yaml names, resolved, in its order: what `report` puts on one page."""

    title: str
    data_sets: Mapping[str, DataSet]
    buffers: Mapping[str, Buffer]
    runs: Mapping[str, Run]
    networks: Mapping[str, Network]
    seed: int
    runtime: Runtime


def data_set(params: Params, name: str) -> DataSet:
    """Raises UnknownNameError."""
    seed = params.seed if params.split_seed is None else params.split_seed
    asked = {run: _asked(params, run) for run, own in params.runs.items() if own.dataset == name}
    return DataSet(name, params.dataset(name), seed, asked)


def _asked(params: Params, run: str) -> Asked:
    own = params.runs[run]
    networks = {network: params.networks[network] for network in (own.network, *own.cross)}
    return Asked(own.ipc, params.distillations[run], networks)


def buffer(params: Params, name: str) -> Buffer:
    """Raises UnknownNameError."""
    settings = params.expert_set(name)
    matching = [params.distillations[run] for run, own in params.runs.items() if own.experts == name]
    needed = max((one.last_epoch for one in matching if one.matches), default=None)
    dataset, spec = data_set(params, settings.dataset), params.networks[settings.network]
    return Buffer(name, dataset, spec, settings, params.seed, params.runtime, needed)


def run(params: Params, name: str) -> Run:
    """Raises UnknownNameError."""
    own, distillation = params.run(name), params.distillations[name]
    return Run(
        name=name,
        dataset=data_set(params, own.dataset),
        network=own.network,
        spec=params.networks[own.network],
        buffer=None if own.experts is None else buffer(params, own.experts),
        ipc=own.ipc,
        method=own.distill.method,
        distillation=distillation,
        protocol=own.evaluate,
        evaluation=params.evaluate[own.evaluate],
        initial=None if distillation.initial_run is None else run(params, distillation.initial_run),
        cross={network: params.networks[network] for network in own.cross},
        seed=params.seed,
        runtime=params.runtime,
    )


def check_images(runs: Iterable[Run], what: str, instead: str) -> None:
    """Raises UserError where a run is of tuples: `what` is for images in classes alone, and `instead` is the remedy."""
    for one in runs:
        if one.dataset.tuples:
            raise UserError(f"{what} is for images in classes, and {one.name} is of tuples: {instead}")


def check_networks(run: Run, networks: Mapping[str, Network]) -> None:
    """Raises UserError where one of these can't read what the run's data set holds."""
    for called, spec in networks.items():
        for problem in tuples.unread(run.dataset.name, run.dataset.settings, called, spec):
            raise UserError(f"network {problem}")


def pipeline(params: Params) -> Pipeline:
    return Pipeline(
        title=params.report.title,
        data_sets={name: data_set(params, name) for name in params.prepare},
        buffers={name: buffer(params, name) for name in params.experts},
        runs={name: run(params, name) for name in params.runs},
        networks=params.networks,
        seed=params.seed,
        runtime=params.runtime,
    )
