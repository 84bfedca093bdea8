"""evaluate: a synthetic set -> accuracies of fresh students, of the run's own network and of others.

The only stage that opens the test split: once, after training, unless the protocol says `score: best_test`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.ground.errors import ArtifactError
from src.loops import students as loops
from src.loops.students import Training
from src.maths import protocol, scores, tasks
from src.maths.tasks import Task
from src.pages.tables import Table
from src.process import progress, workers
from src.settings.networks import Network
from src.settings.resolved import Run
from src.stages import run_log, students, work
from src.stages.records import check_synthetic, prepared, scores_record, students_record
from src.store import checkpoints, cost, files
from src.store.checkpoints import Work
from src.store.cost import Cost
from src.store.store import Store, read_synthetic
from src.store.values import Statistics, SyntheticSet, TupleStatistics
from src.tracking import tracker as tracking
from src.tracking.tracker import Tracker

SPLITS = ("val", "test")

Networks = Mapping[str, Network]  # by name
Rows = list[dict[str, Any]]  # a student each: its number, and its figures on every split, accuracy or what the task has
Predicted = dict[str, Tensor]  # split -> classes (G, N), or what else the task makes its figures from


class Measured(NamedTuple):
    """What trained students predict, what other processes spent on them, earlier ones too, and the work that keeps them."""

    predicted: Predicted
    elsewhere: Cost
    work: Work


def run(store: Store, run: Run) -> None:
    """Evaluate a run with its own network and those of `cross`, from students' checkpoints where there are any."""
    with checkpoints.at_work("evaluate", run.name):
        _run(store, run)


def _run(store: Store, run: Run) -> None:
    name = run.name
    device = work.start(run.runtime, name)
    statistics, synthetic = inputs(store, run)
    with tracked(store, run, run.networks, statistics) as tracker:
        with cost.measured(device) as spent:
            found = {
                network: predict_all(store, run, (network, spec), synthetic, statistics, device)
                for network, spec in run.networks.items()
            }
        for one in found.values():
            spent.add(one.elsewhere)
        rows = _figures(store, run, {network: one.predicted for network, one in found.items()})
        summaries = {network: _summary(own) for network, own in rows.items()}
        _save(store, run, rows, summaries, found[run.network].predicted, statistics)
        cost.keep(store.metrics_file(name), spent)
        _log(tracker, store, run, summaries)
    _show(run, summaries)
    if run.distillation.iterations and run.distillation.inner_optimiser == "adam":
        progress.say(f"{name}: distilled for students that learn by Adam, while these learn by SGD, with the same step size")


def score_networks(store: Store, run: Run, networks: Networks) -> None:
    """Score a run with exactly these networks: on the screen and in its MLflow run, in no artifact."""
    with checkpoints.at_work("evaluate", run.name):
        device = work.start(run.runtime, run.name)
        statistics, synthetic = inputs(store, run)
        with tracked(store, run, networks, statistics) as tracker:
            found = {one[0]: predict_all(store, run, one, synthetic, statistics, device).predicted for one in networks.items()}
            summaries = {network: _summary(own) for network, own in _figures(store, run, found).items()}
            _log_scores(tracker, run, summaries)
    _show(run, summaries)


def score_file(store: Store, run: Run, networks: Networks, path: Path) -> None:
    """Score the synthetic set of any file under the data set and protocol of a run: on the screen alone."""
    device, statistics = work.start(run.runtime, run.name), prepared(store, run.dataset, *SPLITS)
    synthetic = read_synthetic(path, "give a file that `export` or `distill` wrote")
    _check_fit(path, synthetic, statistics)
    chosen, place = networks or {run.network: run.spec}, f"file-{synthetic.sha256()[:16]}"
    with checkpoints.at_work("evaluate", place):
        found = {one[0]: predict_all(store, run, one, synthetic, statistics, device, place) for one in chosen.items()}
        for measured in found.values():
            measured.work.forget()
    predicted = {network: measured.predicted for network, measured in found.items()}
    _show(run, {network: _summary(own) for network, own in _figures(store, run, predicted).items()})


def _check_fit(path: Path, synthetic: SyntheticSet, statistics: Statistics) -> None:
    """Raises ArtifactError where the set's images or classes are not the data set's."""
    wanted = statistics.image_shape.batch
    classes, found, soft = len(statistics.classes), synthetic.class_count, synthetic.labels.is_floating_point()
    fits = found == classes if soft else found <= classes
    if synthetic.pixels.shape[1:] != wanted or len(synthetic.labels) != len(synthetic.pixels) or not fits:
        shape = "x".join(str(side) for side in synthetic.pixels.shape[1:])
        raise ArtifactError(
            f"{path} holds {shape} images of {found} classes{'' if soft else ' or more'}, the data set has "
            f"{'x'.join(str(side) for side in wanted)} images of {classes}: choose a run on the set's own data"
        )


def inputs(store: Store, run: Run) -> tuple[Statistics, SyntheticSet]:
    """What a run's students are made from; raises ArtifactError where it was made with other settings."""
    statistics = prepared(store, run.dataset, *SPLITS)
    check_synthetic(store, run)
    return statistics, store.load_synthetic(run.name)


@contextmanager
def tracked(store: Store, run: Run, networks: Networks, statistics: Statistics) -> Iterator[Tracker]:
    """The row of this synthetic set under this protocol. Other networks add to it; one that was redefined opens a new row."""
    others = {network: spec.model_dump() for network, spec in networks.items() if network != run.network}
    find = {"ast.synthetic": files.digest(store.synthetic_file(run.name))}
    add = run_log.protocol_tags(run) | {
        f"ast.network.{network}": tracking.fingerprint(definition) for network, definition in others.items()
    }
    with tracking.track(run.dataset.name, run.name, "run", find, add) as tracker:
        tracker.params({"evaluate": run_log.protocol(run)})
        run_log.describe(tracker, store, run)
        run_log.log_outputs(tracker, store, run)
        yield tracker


def predict_all(
    store: Store,
    run: Run,
    network: tuple[str, Network],
    synthetic: SyntheticSet,
    statistics: Statistics,
    device: torch.device,
    place: str = "",
    splits: tuple[str, ...] = SPLITS,
) -> Measured:
    """Each split's classes (G, N) as predicted by trained students of `network`.

    What students of just these settings predict is kept, under the run's name or another `place`, so that another network in
    params.yaml, at which DVC runs every evaluation again, costs no training.
    """
    (called, spec), settings, asked = network, run.evaluation, run.runtime
    training = training_of(store, run, spec, synthetic, statistics, device, splits)
    way = training.way
    if way.note:
        progress.say(f"{run.name}: {way.note}")
    record = work.whole(students_record(store, run, spec, synthetic), asked, "evaluate", device)
    backend = f"{way.backend}, together" if way.together else way.backend  # which says what a checkpoint holds
    own = work.of(asked, "evaluate", f"{place or run.name}@{called}", record, spec, backend)
    job = students.Job(training, own, store.input_files(run.dataset.name, splits))
    groups = 1 if way.together else settings.students
    processes = workers.processes(asked, device, groups, way.flops)
    title = f"evaluate {run.name}" if called == run.network else f"evaluate {run.name} with {called}"
    found, elsewhere = students.train_all(job, groups, asked, processes, title)
    job.work.forget_others()
    predicted = {split: torch.cat([torch.from_numpy(group[split]) for group in found]) for split in splits}
    return Measured(predicted, elsewhere, own)


def training_of(
    store: Store,
    run: Run,
    spec: Network,
    synthetic: SyntheticSet,
    statistics: Statistics,
    device: torch.device,
    splits: tuple[str, ...] = SPLITS,
) -> Training:
    """What the training of every student of a network takes."""
    settings, forward = run.evaluation, loops.forward_flops(spec, statistics.shape)
    way = protocol.choose(run.runtime, device, settings, len(synthetic.labels), forward, spec)
    way = replace(way, together=way.together and _fit(run, spec, len(synthetic.labels), statistics, device))
    images = store.load_space(run.dataset.name).normalise(synthetic.pixels)
    rates = synthetic.syn_lr.tolist()
    return Training(
        settings, spec, statistics.shape, run.seed, way,
        images.numpy(), synthetic.labels.numpy(), tuple(rates) if isinstance(rates, list) else rates,
        splits, "test" if settings.selects_on_test else None,
        functools.partial(store.load_real, run.dataset.name), task_of(run, statistics),
    )  # fmt: skip


def task_of(run: Run, statistics: Statistics) -> Task:
    """What students learn of the synthetic set. All real tuples are like none but themselves."""
    similarity = None if run.ipc == "all" else run.distillation.similarity
    return tasks.of(statistics.shape, run.evaluation.contrast, similarity)


def _fit(run: Run, spec: Network, count: int, statistics: Statistics, device: torch.device) -> bool:
    """Whether the GPU's memory, whatever others have taken of it just now, holds all students on `count` images at once."""
    if device.type != "cuda" or isinstance(statistics, TupleStatistics):  # of tuples it is not known: a few, and small
        return True
    from src.loops import counted, student_memory

    task = counted.Task(spec, statistics.image_shape, run.runtime.precision == "bfloat16")
    _, memory = torch.cuda.mem_get_info(device)
    return student_memory.fit(task, run.evaluation, count, max(sum(statistics.counts[s].values()) for s in SPLITS), memory)


def _figures(store: Store, run: Run, predicted: Mapping[str, Predicted]) -> dict[str, Rows]:
    """Each network's students."""
    labels = {split: store.load_labels(run.dataset.name, split) for split in SPLITS}
    task = task_of(run, store.load_statistics(run.dataset.name))

    def row(student: int, measured: Predicted) -> dict[str, Any]:
        each = {split: task.figures(measured[split][student], labels[split]) for split in SPLITS}
        return {"student": student, **{f"{split}_{name}": value for split in SPLITS for name, value in each[split].items()}}

    return {
        network: [row(student, measured) for student in range(len(measured["test"]))] for network, measured in predicted.items()
    }


def _summary(rows: Rows) -> dict[str, float]:
    """Mean and standard deviation over the students, as fractions."""
    summary: dict[str, float] = {}
    for name in [name for name in rows[0] if name != "student"]:
        mean, std = scores.mean_and_std([row[name] for row in rows])
        summary |= {f"{name}_mean": mean, f"{name}_std": std}
    return summary


def _save(
    store: Store,
    run: Run,
    rows: Mapping[str, Rows],
    summaries: Mapping[str, dict[str, float]],
    predicted: Predicted,
    statistics: Statistics,
) -> None:
    """Students, metrics and predictions are the own network's; predictions its first student's, for DVC's confusion plot."""
    name, classes = run.name, statistics.classes
    store.scores_file(name).unlink(missing_ok=True)  # not of a part of them
    pairs: Iterable[tuple[int, int]] = ()  # tuples have no classes to confuse
    if not isinstance(statistics, TupleStatistics):
        labels = store.load_split(run.dataset.name, "test").labels
        pairs = zip(labels.tolist(), predicted["test"][0].tolist(), strict=True)
    confused = [{"actual": classes[a], "predicted": classes[p]} for a, p in pairs]
    files.write_csv(store.predictions_file(name), confused, ("actual", "predicted"))
    files.write_csv(store.students_file(name), rows[run.network])
    files.write_csv(store.networks_file(name), [{"network": network, **summaries[network]} for network in summaries])
    files.write_json(store.metrics_file(name), summaries[run.network])
    store.save_scores(name, scores_record(store, run))


def _log(tracker: Tracker, store: Store, run: Run, summaries: Mapping[str, dict[str, float]]) -> None:
    """What `run` has found and written."""
    dataset = run.dataset.name
    _log_scores(tracker, run, summaries)
    run_log.log_cost(tracker, "evaluate", cost.lookup(store.metrics_file(run.name)))
    tracker.dataset(dataset, store.split_file(dataset, "test"), "testing")
    run_log.log_tuples(tracker, store, run)
    made = (store.metrics_file, store.students_file, store.networks_file, store.scores_file, store.predictions_file)
    for path in (file(run.name) for file in made):
        tracker.file(path, "evaluate")
        tracker.output(path)


def _log_scores(tracker: Tracker, run: Run, summaries: Mapping[str, dict[str, float]]) -> None:
    """The own network's scores under their plain names, others' as cross/NETWORK/..."""
    for network, summary in summaries.items():
        prefix = "" if network == run.network else f"cross/{network}/"
        tracker.metrics({f"{prefix}{key}": value for key, value in summary.items()})


def _show(run: Run, summaries: Mapping[str, dict[str, float]]) -> None:
    """A row a network."""
    settings = run.evaluation
    headline, said = run.dataset.headline, " mean recall" if run.dataset.tuples else ""
    table = Table("network", f"validation{said}, %", f"test{said}, %", title=run.name)
    for network, summary in summaries.items():
        cells = (f"{100 * summary[f'{s}_{headline}_mean']:.1f} ± {100 * summary[f'{s}_{headline}_std']:.1f}" for s in SPLITS)
        table.add_row(network, *cells)
    progress.console.print(table)
    if settings.selects_on_test:
        progress.say(f"{run.name}: protocol {run.protocol} scores each student's {settings.scored}: it selects on that split")
