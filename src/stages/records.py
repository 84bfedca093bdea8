"""What defines the artifacts of experts and runs: written into them when made, compared with params.yaml when read."""

from __future__ import annotations

from dataclasses import replace

from src.ground.params import Params
from src.io import artifacts, files
from src.io.artifacts import Record, Statistics, SyntheticSet


def prepared_record(params: Params, name: str, source_sha256: str, kind: str = "") -> Record:
    """The record of a data set's splits, and of all that is fitted on them."""
    seed = params.seed if params.split_seed is None else params.split_seed
    settings = {"seed": seed, "dataset": name, "prepare": params.dataset(name).model_dump(exclude={"path"})}
    return Record(kind, settings, {"source": source_sha256})


def prepared(params: Params, name: str, *splits: str) -> Statistics:
    """The data set's statistics; raises ArtifactError where these, its space or one of these splits were made differently."""
    statistics = artifacts.load_statistics(name)
    kinds = {artifacts.statistics_file(name): artifacts.STATISTICS, artifacts.space_file(name): artifacts.SPACE}
    kinds |= {artifacts.split_file(name, split): artifacts.split_kind(split) for split in splits}
    for path, kind in kinds.items():
        record = prepared_record(params, name, statistics.source_sha256, kind)
        artifacts.check_record(path, record, artifacts.remake("prepare", name))
    return statistics


def experts_record(params: Params, name: str) -> Record:
    """The record of each expert under today's parameters and training split; it does not depend on how many there are."""
    settings = params.expert_set(name)
    train = artifacts.split_file(settings.dataset, "train")
    artifacts.load_split(settings.dataset, "train")  # a missing or damaged split is said in its own words
    network = params.networks[settings.network].model_dump()
    made_from = {"seed": params.seed, "experts": settings.model_dump(mode="json", exclude={"count"}), "network": network}
    return Record("trajectory", made_from, {train.as_posix(): files.digest(train)})


def synthetic_settings(params: Params, name: str, kind: str = artifacts.SYNTHETIC) -> Record:
    """What params.yaml says of a run's synthetic set; evaluation takes it without the experts at hand."""
    run, experts = params.run(name), params.experts_of(name)
    settings = {
        "seed": params.seed,
        "dataset": run.dataset,
        "network": params.networks[run.network].model_dump(),
        "experts": None if experts is None else experts.model_dump(mode="json"),
        "ipc": run.ipc,
        "distill": params.distillations[name].model_dump(mode="json"),
    }
    return Record(kind, settings)


def synthetic_record(params: Params, name: str) -> Record:
    """The whole record of a run's synthetic set, with the expert buffer it is made from, or else the real images."""
    run = params.run(name)
    made_from = artifacts.trajectories_folder(run.experts) if run.experts else artifacts.split_file(run.dataset, "train")
    return replace(synthetic_settings(params, name), inputs={made_from.as_posix(): files.digest(made_from)})


def iterations_record(record: Record) -> Record:
    """The record of a synthetic set's iterations, each of which is the same however many there are to be."""
    distil = {key: value for key, value in record.settings["distill"].items() if key != "iterations"}
    return replace(record, settings={**record.settings, "distill": distil})


def students_record(params: Params, name: str, network: str, synthetic: SyntheticSet) -> Record:
    """What students of one network under a run's protocol, and what they predict, are made from. No artifact carries it."""
    run = params.run(name)
    settings = {
        "seed": params.seed,
        "network": params.networks[network].model_dump(),
        "evaluate": params.evaluate[run.evaluate].model_dump(mode="json"),
    }
    folder = artifacts.dataset_folder(run.dataset)
    return Record("students", settings, {folder.as_posix(): files.digest(folder), "synthetic set": synthetic.sha256()})
