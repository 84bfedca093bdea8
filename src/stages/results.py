"""The runs' scores as they stand on disk, with what each is compared to: the rows of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from src.ground.errors import ArtifactError
from src.pages.page import Accuracy, Group, Matrix, Result
from src.process import progress
from src.settings.resolved import Run
from src.stages.records import check_scores
from src.store import files
from src.store.store import Store, remake

SCORES = ("val_{}", "test_{}")  # of accuracy, or of what stands for it


def groups(store: Store, runs: Mapping[str, Run]) -> tuple[Group, ...]:
    """All these runs, grouped by data set and images per class; raises ArtifactError where one is not made."""
    results = _coloured([result_of(store, run) for run in runs.values()])
    keys = dict.fromkeys((result.dataset, result.ipc) for result in results)
    return tuple(_group([r for r in results if (r.dataset, r.ipc) == key], results, runs) for key in keys)


def measured(store: Store, run: Run) -> dict[str, float] | None:
    """Accuracy or recall of this very set by its own protocol; None where that isn't measured."""
    metrics = store.metrics_file(run.name)
    if not metrics.exists():
        return None
    try:
        check_scores(store, run)
    except ArtifactError as error:
        progress.say(f"{run.name} is exported without its scores, as {error}")
        return None
    return dict(files.read_json(metrics, remake("evaluate", run.name)))


def result_of(store: Store, run: Run) -> Result:
    """One run's row, by itself; raises ArtifactError where it is not made."""
    name, dataset, distil = run.name, run.dataset.name, run.distillation
    tuples = run.dataset.tuples
    (val, test), students = _scores(store, name, run.dataset.headline)
    synthetic = store.load_synthetic(name)
    images = len(synthetic.labels)
    return Result(
        run=name,
        dataset=dataset,
        ipc=f"{run.ipc} tuples" if tuples and run.ipc != "all" else run.ipc,
        images=images,
        share=images / sum(store.load_statistics(dataset).counts["train"].values()),
        method=run.method,
        initialisation=distil.initialisation,
        distilled=distil.iterations > 0,
        matches=distil.matches,
        parts=() if run.ipc == "all" else _parts(run),
        val=val,
        test=test,
        students=students,
        selected=run.evaluation.selects_on_test,
        soft=synthetic.labels.is_floating_point() and not tuples,
        tuples=tuples,
        pixels="" if run.ipc == "all" else files.checksum({}, {"pixels": synthetic.pixels}),
    )


def _scores(store: Store, name: str, figure: str) -> tuple[list[Accuracy], tuple[float, ...]]:
    """A run's accuracy, or other figure, on the validation and test split, and on the latter that of each of its students."""
    remedy, keys = remake("evaluate", name), [score.format(figure) for score in SCORES]
    metrics = files.read_json(store.metrics_file(name), remedy)
    students = files.read_numbers(store.students_file(name), keys[-1:], remedy)
    with files.understood(store.metrics_file(name), remedy):
        both = [Accuracy(float(metrics[f"{key}_mean"]), float(metrics[f"{key}_std"])) for key in keys]
        return both, tuple(row[keys[-1]] for row in students)


def matrix(store: Store, runs: Mapping[str, Run], order: Sequence[str], results: Sequence[Result]) -> Matrix | None:
    """Test accuracy of every network, in this order, that a run with `cross` is scored with; None without such a run."""
    crossed = {result: _network_scores(store, runs[result.run]) for result in results if runs[result.run].cross}
    used = {network for scores in crossed.values() for network in scores}
    networks = tuple(network for network in order if network in used)
    rows = tuple((result, tuple(scores.get(network) for network in networks)) for result, scores in crossed.items())
    return Matrix(networks, rows) if crossed else None


def _network_scores(store: Store, run: Run) -> dict[str, Accuracy]:
    """A run's test accuracies by network."""
    path, remedy = store.networks_file(run.name), remake("evaluate", run.name)
    rows = files.read_csv(path, remedy)
    with files.understood(path, remedy):
        columns = [f"{SCORES[-1].format(run.dataset.headline)}_{of}" for of in ("mean", "std")]
        return {row["network"]: Accuracy(*(float(row[column]) for column in columns)) for row in rows}


def _parts(run: Run) -> tuple[int, ...]:
    """Numbers of the parts of methods that had a say in the images."""
    distil = run.distillation
    matched, representative = distil.matches, distil.initialisation == "representative"
    asked = run.experts.settings if distil.asks_experts else None
    on = (
        asked is not None and asked.clipping_loss,
        asked is not None and asked.gradient_penalty > 0,
        representative,
        matched and distil.balanced_loss,
        matched and distil.intermediate_loss != "off",
        matched and distil.weight_perturbation > 0,
        matched and distil.target == "nearest",
        distil.ema is not None,
        distil.labels != "fixed",
        matched and distil.start_growth is not None,
        matched and distil.unmatched_depth > 0,
        "real" in distil.targets,
        distil.iterations > 0 and distil.gradient == "tesla",
        asked is not None and asked.sharpness > 0,
        matched and distil.similarity is not None,
        matched and distil.normalised == "modality",
    )
    return tuple(number for number, is_on in enumerate(on, start=1) if is_on)


def _coloured(results: Sequence[Result]) -> list[Result]:
    """A colour a method; a colour a run where one group compares runs of the same method."""
    distilled = [result for result in results if result.distilled]
    if len({(r.dataset, r.ipc, r.method) for r in distilled}) == len(distilled):
        methods = list(dict.fromkeys(result.method for result in distilled))
        colours = {result.run: methods.index(result.method) for result in distilled}
    else:
        colours = {result.run: place for place, result in enumerate(distilled)}
    return [replace(result, colour=colours.get(result.run)) for result in results]


def _group(members: Sequence[Result], results: Sequence[Result], runs: Mapping[str, Run]) -> Group:
    """Gains are of students of one network and protocol, and as many images, those of the best run.

    All real images are of its network too.
    """

    def like(one: Result, other: Result) -> bool:
        mine, its = runs[one.run], runs[other.run]
        return (mine.spec, mine.evaluation, one.images) == (its.spec, its.evaluation, other.images)

    first = members[0]
    candidates = [r for r in members if r.distilled] or members
    best = max(candidates, key=lambda r: r.val.mean)  # never chosen on the test split
    # random images are what everybody knows; another initialisation stands in where there are none
    real = sorted(
        (r for r in members if not (r.distilled or r.whole or r.initialisation in ("noise", "given", "run")) and like(r, best)),
        key=lambda r: r.initialisation != "random",
    )
    baseline = real[0] if real else None
    if baseline is not None:
        gains = {r.run: r.test.mean - baseline.test.mean for r in members if r is not baseline and like(r, baseline)}
        members = [replace(r, gain=gains.get(r.run)) for r in members]
        best = next(r for r in members if r.run == best.run)
    alike = (r for r in results if r.whole and r.dataset == first.dataset and runs[r.run].spec == runs[best.run].spec)
    whole = next(alike, None)
    return Group(first.dataset, first.ipc, tuple(members), best, baseline, whole)
