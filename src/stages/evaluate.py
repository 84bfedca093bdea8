"""evaluate: a synthetic set -> accuracies of fresh students, of the run's own network and of others.

The only stage that opens the test split: once, after training, unless the protocol says `score: best_test`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.ground.errors import ArtifactError
from src.ground.params import Params
from src.io import artifacts, checkpoints, cost, files, progress, tracking, workers
from src.io.artifacts import Statistics, SyntheticSet
from src.io.cost import Cost
from src.io.tables import Table
from src.io.tracking import Tracker
from src.maths import protocol, scores
from src.stages import run_log, students, work
from src.stages.records import prepared, students_record, synthetic_settings
from src.stages.students import Training

SPLITS = ("val", "test")

Rows = list[dict[str, Any]]  # a student each: its number, and its accuracy on every split
Predicted = dict[str, Tensor]  # split -> classes (G, N)


def run(params: Params, name: str) -> None:
    """Evaluate the run `name` with its own network and those of `cross`, from students' checkpoints where there are any."""
    params.run(name)
    with checkpoints.at_work("evaluate", name):
        _run(params, name)


def _run(params: Params, name: str) -> None:
    settings = params.runs[name]
    device = work.start(params.runtime, name)
    statistics, synthetic = inputs(params, name)
    networks = [settings.network, *settings.cross]
    with tracked(params, name, networks, statistics) as tracker:
        with cost.measured(device) as spent:
            found = {n: predict_all(params, name, n, synthetic, statistics, device) for n in networks}
        for _, elsewhere in found.values():
            spent.add(elsewhere)
        rows = _accuracies(params, name, {network: predicted for network, (predicted, _) in found.items()})
        summaries = {network: _summary(own) for network, own in rows.items()}
        _save(params, name, rows, summaries, found[settings.network][0], statistics)
        cost.keep(artifacts.metrics_file(name), spent)
        _log(tracker, params, name, summaries)
    _show(params, name, summaries)


def forget(place: str, networks: Sequence[str]) -> None:
    """Delete what is kept of students where nobody will ask for them again."""
    for network in networks:
        checkpoints.forget("evaluate", f"{place}@{network}")


def score_networks(params: Params, name: str, networks: Sequence[str]) -> None:
    """Score the run `name` with exactly these networks: on the screen and in its MLflow run, in no artifact."""
    params.run(name)
    for network in networks:
        params.network(network)
    with checkpoints.at_work("evaluate", name):
        device = work.start(params.runtime, name)
        statistics, synthetic = inputs(params, name)
        with tracked(params, name, networks, statistics) as tracker:
            found = {network: predict_all(params, name, network, synthetic, statistics, device)[0] for network in networks}
            summaries = {network: _summary(own) for network, own in _accuracies(params, name, found).items()}
            _log_scores(tracker, params, name, summaries)
    _show(params, name, summaries)


def score_file(params: Params, name: str, networks: Sequence[str], path: Path) -> None:
    """Score the synthetic set of any file under the data set and protocol of the run `name`: on the screen alone."""
    run = params.run(name)
    device, statistics = work.start(params.runtime, name), prepared(params, run.dataset, *SPLITS)
    synthetic = artifacts.read_synthetic(path, "give a file that `export` or `distill` wrote")
    _check_fit(path, synthetic, statistics)
    for network in networks:
        params.network(network)
    chosen, place = networks or [run.network], f"file-{synthetic.sha256()[:16]}"
    with checkpoints.at_work("evaluate", place):
        found = {n: predict_all(params, name, n, synthetic, statistics, device, place)[0] for n in chosen}
        forget(place, chosen)
    summaries = {network: _summary(own) for network, own in _accuracies(params, name, found).items()}
    _show(params, name, summaries)


def _check_fit(path: Path, synthetic: SyntheticSet, statistics: Statistics) -> None:
    """Raises ArtifactError where the set's images or classes are not the data set's."""
    wanted = (statistics.channels, statistics.size, statistics.size)
    classes, highest = len(statistics.classes), int(synthetic.classes.max()) + 1
    if synthetic.pixels.shape[1:] != wanted or len(synthetic.labels) != len(synthetic.pixels) or highest > classes:
        shape = "x".join(str(side) for side in synthetic.pixels.shape[1:])
        raise ArtifactError(
            f"{path} holds {shape} images of {highest} classes or more, the data set has "
            f"{'x'.join(str(side) for side in wanted)} images of {classes}: choose a run on the set's own data"
        )


def inputs(params: Params, name: str) -> tuple[Statistics, SyntheticSet]:
    """What a run's students are made from; raises ArtifactError where it was made with other settings."""
    path = artifacts.synthetic_file(name)
    statistics = prepared(params, params.runs[name].dataset, *SPLITS)
    artifacts.check_record(path, synthetic_settings(params, name), artifacts.remake("distill", name))
    return statistics, artifacts.load_synthetic(name)


@contextmanager
def tracked(params: Params, name: str, networks: Sequence[str], statistics: Statistics) -> Iterator[Tracker]:
    """The row of this synthetic set under this protocol. Other networks add to it; one that was redefined opens a new row."""
    run = params.runs[name]
    settings = params.evaluate[run.evaluate]
    logged = {"protocol": run.evaluate, **settings.model_dump()}
    others = {network: params.networks[network].model_dump() for network in networks if network != run.network}
    find = {"ast.synthetic": files.digest(artifacts.synthetic_file(name))}
    add = {"ast.evaluation": tracking.fingerprint(logged), "ast.scored": settings.scored}
    add |= {f"ast.network.{network}": tracking.fingerprint(definition) for network, definition in others.items()}
    with tracking.track(run.dataset, name, "run", find, add) as tracker:
        tracker.params({"evaluate": logged})
        run_log.describe(tracker, params, name)
        run_log.log_outputs(tracker, params, name)
        yield tracker


def predict_all(
    params: Params,
    name: str,
    network: str,
    synthetic: SyntheticSet,
    statistics: Statistics,
    device: torch.device,
    place: str = "",
    splits: tuple[str, ...] = SPLITS,
) -> tuple[Predicted, Cost]:
    """Each split's classes (G, N) as predicted by trained students of `network`; the cost of other processes, earlier ones too.

    What students of just these settings predict is kept, under the run's name or another `place`, so that another network in
    params.yaml, at which DVC runs every evaluation again, costs no training.
    """
    run = params.runs[name]
    settings, spec = params.evaluate[run.evaluate], params.networks[network]
    forward = students.forward_flops(spec, statistics.shape)
    way = protocol.choose(params.runtime, device, settings, len(synthetic.labels), forward, spec.keeps_statistics)
    if way.note:
        progress.say(f"{name}: {way.note}")
    images = artifacts.load_space(run.dataset).normalise(synthetic.pixels)
    record = work.whole(students_record(params, name, network, synthetic), params, "evaluate", device)
    training = Training(
        run.dataset, settings, spec, statistics.shape, params.seed, way,
        images.numpy(), synthetic.labels.numpy(), synthetic.syn_lr.item(),
        splits, "test" if settings.selects_on_test else None,
        work.of(params, "evaluate", f"{place or name}@{network}", record, way.compiled),
    )  # fmt: skip
    groups = 1 if way.together else settings.students
    processes = workers.processes(params.runtime, device, groups, way.flops)
    title = f"evaluate {name}" if network == run.network else f"evaluate {name} with {network}"
    found, elsewhere = students.train_all(training, groups, params.runtime, processes, title)
    training.work.forget_others()
    return {split: torch.cat([torch.from_numpy(group[split]) for group in found]) for split in splits}, elsewhere


def _accuracies(params: Params, name: str, predicted: Mapping[str, Predicted]) -> dict[str, Rows]:
    """Each network's students."""
    labels = {split: artifacts.load_split(params.runs[name].dataset, split).labels for split in SPLITS}
    return {
        network: [
            {"student": student, **{f"{s}_accuracy": scores.accuracy(classes[s][student], labels[s]) for s in SPLITS}}
            for student in range(len(classes["test"]))
        ]
        for network, classes in predicted.items()
    }


def _summary(rows: Rows) -> dict[str, float]:
    """Mean and standard deviation over the students, as fractions."""
    summary: dict[str, float] = {}
    for split in SPLITS:
        mean, std = scores.mean_and_std([row[f"{split}_accuracy"] for row in rows])
        summary |= {f"{split}_accuracy_mean": mean, f"{split}_accuracy_std": std}
    return summary


def _save(
    params: Params,
    name: str,
    rows: Mapping[str, Rows],
    summaries: Mapping[str, dict[str, float]],
    predicted: Predicted,
    statistics: Statistics,
) -> None:
    """Students, metrics and predictions are the own network's; predictions its first student's, for DVC's confusion plot."""
    own, classes = params.runs[name].network, statistics.classes
    labels = artifacts.load_split(params.runs[name].dataset, "test").labels
    pairs = zip(labels.tolist(), predicted["test"][0].tolist(), strict=True)
    files.write_csv(artifacts.predictions_file(name), [{"actual": classes[a], "predicted": classes[p]} for a, p in pairs])
    files.write_csv(artifacts.students_file(name), rows[own])
    files.write_csv(artifacts.networks_file(name), [{"network": network, **summaries[network]} for network in summaries])
    files.write_json(artifacts.metrics_file(name), summaries[own])


def _log(tracker: Tracker, params: Params, name: str, summaries: Mapping[str, dict[str, float]]) -> None:
    """What `run` has found and written."""
    _log_scores(tracker, params, name, summaries)
    run_log.log_cost(tracker, "evaluate", cost.lookup(artifacts.metrics_file(name)))
    tracker.dataset(params.runs[name].dataset, artifacts.split_file(params.runs[name].dataset, "test"), "testing")
    made = (artifacts.metrics_file, artifacts.students_file, artifacts.networks_file, artifacts.predictions_file)
    for path in (file(name) for file in made):
        tracker.file(path, "evaluate")
        tracker.output(path)


def _log_scores(tracker: Tracker, params: Params, name: str, summaries: Mapping[str, dict[str, float]]) -> None:
    """The own network's scores under their plain names, others' as cross/NETWORK/..."""
    for network, summary in summaries.items():
        prefix = "" if network == params.runs[name].network else f"cross/{network}/"
        tracker.metrics({f"{prefix}{key}": value for key, value in summary.items()})


def _show(params: Params, name: str, summaries: Mapping[str, dict[str, float]]) -> None:
    """A row a network."""
    protocol_name = params.runs[name].evaluate
    settings = params.evaluate[protocol_name]
    table = Table("network", "validation, %", "test, %", title=name)
    for network, summary in summaries.items():
        cells = (f"{100 * summary[f'{s}_accuracy_mean']:.1f} ± {100 * summary[f'{s}_accuracy_std']:.1f}" for s in SPLITS)
        table.add_row(network, *cells)
    progress.console.print(table)
    if settings.selects_on_test:
        progress.say(f"{name}: protocol {protocol_name} scores each student's {settings.scored}: it selects on that split")
