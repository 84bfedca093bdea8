"""Snapshots: what students learn from a set as it was on the way, which says whether more iterations would pay.

Iterations are chosen by it, so it looks at the validation split alone, unless it is asked for what public code would have
reported, which chooses on the test split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from src.ground.errors import ArtifactError, UserError
from src.maths import scores
from src.maths.tasks import Task
from src.pages import page
from src.pages.page import Accuracy
from src.pages.tables import Table
from src.process import progress
from src.settings.resolved import Run
from src.stages import evaluate, work
from src.stages.records import check_synthetic
from src.store import checkpoints, files, values
from src.store.checkpoints import Work
from src.store.store import Store, remake
from src.store.values import SyntheticSet


def run(store: Store, run: Run, test: bool) -> None:
    """Score every snapshot of a run: on the screen, and as a curve in its MLflow run; with `test` on the test split too.

    Students are trained by the run's protocol, and scored after the last epoch.
    """
    name, network = run.name, (run.network, run.spec)
    if not run.distillation.iterations:
        raise UserError(f"{name}: is not distilled and has no snapshots: name a run with iterations")
    splits = evaluate.SPLITS if test else ("val",)
    table = Table("iteration", *page.columns(page.WORDS[run.dataset.headline])[: len(splits)], title=name)
    with checkpoints.at_work("evaluate", name):
        device = work.start(run.runtime, name)
        statistics, synthetic = evaluate.inputs(store, run)
        check_synthetic(store, run, values.SNAPSHOTS)
        labels = {split: store.load_labels(run.dataset.name, split) for split in splits}
        task = evaluate.task_of(run, statistics)
        reached: dict[int, dict[str, Accuracy]] = {}
        works: dict[int, Work] = {}
        with evaluate.tracked(store, run, {run.network: run.spec}, statistics) as tracker:
            sets = _sets(store, run, synthetic)
            for iteration, one in sets.items():
                progress.say(f"{name}: as it was after iteration {iteration}")
                given = (network, one, statistics, device, _place(name, iteration, splits), splits)
                measured, _, works[iteration] = evaluate.predict_all(store, _at_the_last_epoch(run), *given)
                reached[iteration] = {split: _score(task, measured[split], labels[split]) for split in splits}
                for split, score in reached[iteration].items():
                    figure = f"snapshots/{split}_{task.headline}"
                    tracker.metrics({f"{figure}_mean": score.mean, f"{figure}_std": score.std}, iteration)
                table.add_row(str(iteration), *(page.score(score) for score in reached[iteration].values()))
        for iteration, own in works.items():
            for looked_at in (("val",), evaluate.SPLITS):
                replace(own, name=f"{_place(name, iteration, looked_at)}@{run.network}").forget()
    progress.console.print(table)
    if test:
        progress.say(f"{name}: {_best_on_test(reached)}")


def _score(task: Task, predicted: Tensor, labels: Tensor) -> Accuracy:
    return Accuracy(*scores.mean_and_std([task.figures(one, labels)[task.headline] for one in predicted]))


def _best_on_test(reached: Mapping[int, Mapping[str, Accuracy]]) -> str:
    """What public code reports: the best mean on the test split, which is more than an honest choice would find."""
    best = max(reached, key=lambda iteration: reached[iteration]["test"].mean)
    found = page.score(reached[best]["test"])
    return f"best of {len(reached)} on the test split {found}, iteration {best}: chosen on that split, for comparison only"


def _at_the_last_epoch(run: Run) -> Run:
    """A protocol may take the best epoch on the test split, which is not looked at here."""
    return replace(run, evaluation=run.evaluation.model_copy(update={"score": "last"}))


def _place(name: str, iteration: int, splits: tuple[str, ...]) -> str:
    """Where students are kept until all are scored: by what is kept of them in the end, their predictions on these splits."""
    return "-".join(("snapshot", str(iteration), *splits, name))


def _sets(store: Store, run: Run, synthetic: SyntheticSet) -> dict[int, SyntheticSet]:
    """The synthetic set as it was, with the labels and syn_lr of that iteration; the last one is the set itself."""
    path, remedy = store.history_file(run.name), remake("distill", run.name)
    names = [f"syn_lr_{name}" for name in run.dataset.settings.modalities or ()] or ["syn_lr"]
    rates = [[row[name] for name in names] for row in files.read_numbers(path, names, remedy)]  # with which an iteration began
    snapshots, last = store.load_snapshots(run.name), synthetic.syn_lr.flatten().tolist()
    shape = synthetic.syn_lr.shape
    if run.distillation.learns_labels and snapshots.labels is None:
        raise ArtifactError(f"{store.snapshots_file(run.name)} is of earlier code and lacks the labels on the way: {remedy}")
    labels = [synthetic.labels] * len(snapshots.iterations) if snapshots.labels is None else snapshots.labels
    with files.understood(path, remedy):
        return {
            iteration: SyntheticSet(pixels, own, synthetic.syn_lr.new_tensor([*rates, last][iteration]).reshape(shape))
            for iteration, pixels, own in zip(snapshots.iterations.tolist(), snapshots.pixels, labels, strict=True)
        }
