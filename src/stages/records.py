"""What defines the artifacts of data sets, experts and runs: written into them when made, compared with today's when read."""

from __future__ import annotations

from dataclasses import replace

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
    return Record(
        "trajectory", {"seed": buffer.seed, "experts": experts, "network": network}, {store.key(train): files.digest(train)}
    )


def synthetic_settings(run: Run, kind: str = values.SYNTHETIC) -> Record:
    """What a run's settings say of its synthetic set; evaluation takes it without the experts at hand."""
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
    """The whole record of a run's synthetic set, with the expert buffer it is made from, or else the real images.

    A run that begins with another's set is made from that too.
    """
    own = run.buffer
    made_from = [store.split_file(run.dataset.name, "train") if own is None else store.trajectories_folder(own.name)]
    if run.initial is not None:
        made_from.append(store.synthetic_file(run.initial.name))
    return replace(synthetic_settings(run), inputs={store.key(path): files.digest(path) for path in made_from})


def iterations_record(record: Record) -> Record:
    """The record of a synthetic set's iterations, each of which is the same however many there are to be."""
    distil = {key: value for key, value in record.settings["distill"].items() if key != "iterations"}
    return replace(record, settings={**record.settings, "distill": distil})


def students_record(store: Store, run: Run, spec: Network, synthetic: SyntheticSet) -> Record:
    """What students of one network under a run's protocol, and what they predict, are made from. No artifact carries it."""
    settings = {"seed": run.seed, "network": spec.model_dump(), "evaluate": run.evaluation.model_dump(mode="json")}
    folder = store.dataset_folder(run.dataset.name)
    return Record("students", settings, {store.key(folder): files.digest(folder), "synthetic set": synthetic.sha256()})
