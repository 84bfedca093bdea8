"""What defines the artifacts of data sets, experts and runs: written into them when made, compared with today's when read."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from src.ground.errors import ArtifactError
from src.settings.networks import Network
from src.settings.resolved import Buffer, DataSet, Run
from src.store import files, tensors, values
from src.store.store import Store, remake
from src.store.values import Record, Statistics, SyntheticSet


def prepared_record(dataset: DataSet, source_sha256: str, kind: str = "") -> Record:
    """The record of a data set's splits, and of all that is fitted on them."""
    settings = {"seed": dataset.seed, "dataset": dataset.name, "prepare": dataset.settings.model_dump(exclude={"path"})}
    return Record(kind, settings, {"source": source_sha256})


def prepared(store: Store, dataset: DataSet, *splits: str) -> Statistics:
    """The data set's statistics; raises ArtifactError where these, its space or one of these splits were made differently."""
    name = dataset.name
    statistics = store.load_statistics(name)
    kinds = {store.statistics_file(name): values.STATISTICS, store.space_file(name): values.SPACE}
    kinds |= {store.split_file(name, split): values.split_kind(split) for split in splits}
    for path, kind in kinds.items():
        tensors.check_record(path, prepared_record(dataset, statistics.source_sha256, kind), remake("prepare", name))
    return statistics


def experts_record(store: Store, buffer: Buffer) -> Record:
    """The record of each expert under today's settings and training split; it does not depend on how many there are."""
    train = store.split_file(buffer.dataset.name, "train")
    store.load_labels(buffer.dataset.name, "train")  # a missing or damaged split is said in its own words
    experts, network = buffer.settings.model_dump(mode="json", exclude={"count"}), buffer.spec.model_dump()
    return Record("trajectory", {"seed": buffer.seed, "experts": experts, "network": network}, _digests(store, [train]))


def synthetic_settings(run: Run, kind: str = values.SYNTHETIC) -> Record:
    """What a run's settings say of its synthetic set."""
    settings = {
        "seed": run.seed,
        "dataset": run.dataset.name,
        "network": run.spec.model_dump(),
        "experts": None if run.buffer is None else run.buffer.settings.model_dump(mode="json"),
        "ipc": run.ipc,
        "distill": run.distillation.model_dump(mode="json"),
    }
    if run.initial is not None:
        settings["initial"] = dict(synthetic_settings(run.initial).settings)
    return Record(kind, settings)


def synthetic_record(store: Store, run: Run) -> Record:
    """The whole record of a run's synthetic set: real images, the expert buffer, and the set that it begins with.

    Raises ArtifactError where one of these is missing.
    """
    made_from = _at_hand(store, run)
    if run.buffer is not None:
        made_from[store.trajectories_folder(run.buffer.name)] = remake("experts", run.buffer.name)
    for path, remedy in made_from.items():
        if not path.exists():
            raise ArtifactError(f"{path} is missing: {remedy}")
    return replace(synthetic_settings(run), inputs=_digests(store, made_from))


def check_synthetic(store: Store, run: Run, kind: str = values.SYNTHETIC, path: Path | None = None) -> None:
    """Raises ArtifactError where a run's set was made from other settings, real images or initial set than those of now.

    What isn't at hand is not compared, and experts never are: whoever pulled a set has neither. They are of the set's settings
    and of its real images. Snapshots are another kind; another path is one of the same set elsewhere.
    """
    made_from = [one for one in _at_hand(store, run) if one.exists()]
    own = store.snapshots_file(run.name) if kind == values.SNAPSHOTS else store.synthetic_file(run.name)
    expected = replace(synthetic_settings(run, kind), inputs=_digests(store, made_from))
    tensors.check_record(path or own, expected, remake("distill", run.name))


def _at_hand(store: Store, run: Run) -> dict[Path, str]:
    """What a synthetic set is made from but for experts, which may be large, with how it is made again."""
    found = {store.split_file(run.dataset.name, "train"): remake("prepare", run.dataset.name)}
    if run.initial is not None:
        found[store.synthetic_file(run.initial.name)] = remake("distill", run.initial.name)
    return found


def _digests(store: Store, paths: Iterable[Path]) -> dict[str, str]:
    return {store.key(path): _digest(path) for path in paths}


def _digest(path: Path) -> str:
    """Remembered, as a report asks for that of a data set as often as it has runs."""
    members = [path, *sorted(one for one in path.rglob("*") if not one.name.startswith("."))]  # of which the digest is
    states = ((one.as_posix(), about.st_mtime_ns, about.st_size, about.st_ino) for one in members for about in [one.stat()])
    return _digest_as_it_is(path.absolute(), tuple(states))


@functools.cache
def _digest_as_it_is(path: Path, states: tuple[tuple[str, int, int, int], ...]) -> str:
    return files.digest(path)


def iterations_record(record: Record) -> Record:
    """The record of a synthetic set's iterations, each of which is the same however many there are to be."""
    distil = {key: value for key, value in record.settings["distill"].items() if key != "iterations"}
    return replace(record, settings={**record.settings, "distill": distil})


def students_record(store: Store, run: Run, spec: Network, synthetic: SyntheticSet) -> Record:
    """What students of one network under a run's protocol, and what they predict, are made from. No artifact carries it."""
    settings = {"seed": run.seed, "network": spec.model_dump(), "evaluate": run.evaluation.model_dump(mode="json")}
    folder = store.dataset_folder(run.dataset.name)
    return Record("students", settings, {**_digests(store, [folder]), "synthetic set": synthetic.sha256()})


def scores_record(store: Store, run: Run) -> Record:
    """The record of a run's scores, which are tables that carry none: it lies beside them.

    Raises ArtifactError where the synthetic set or the scores themselves are missing.
    """
    name = run.name
    settings = {
        "seed": run.seed,
        "dataset": run.dataset.name,
        "networks": {network: spec.model_dump() for network, spec in run.networks.items()},
        "evaluate": run.evaluation.model_dump(mode="json"),
    }
    data_set = store.dataset_folder(run.dataset.name)
    tables = (store.metrics_file(name), store.students_file(name), store.networks_file(name))
    for path in tables:
        if not path.exists():
            raise ArtifactError(f"{path} is missing: {remake('evaluate', name)}")
    scored = {"synthetic set": store.load_synthetic(name).sha256()}
    return Record("scores", settings, scored | _digests(store, [*tables, data_set]))


def check_scores(store: Store, run: Run) -> None:
    """Raises ArtifactError where a run's scores are missing, or of another synthetic set, protocol or networks than its own."""
    tensors.check_record(store.scores_file(run.name), scores_record(store, run), remake("evaluate", run.name))
