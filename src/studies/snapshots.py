"""Snapshots: what students learn from a set as it was on the way, which says whether more iterations would pay.

Iterations are chosen by it, so it looks at the validation split alone.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from src.ground.errors import UserError
from src.maths import scores
from src.pages import page
from src.pages.page import Accuracy
from src.pages.tables import Table
from src.process import progress
from src.settings.resolved import Run
from src.stages import evaluate, work
from src.store import checkpoints, files
from src.store.store import Store, remake
from src.store.values import SyntheticSet


def run(store: Store, run: Run) -> None:
    """Score every snapshot of a run: on the screen, and as a curve in its MLflow run.

    Students are trained by the run's protocol, and scored after the last epoch.
    """
    name, network = run.name, (run.network, run.spec)
    if not run.distillation.iterations:
        raise UserError(f"{name}: is not distilled and has no snapshots: name a run with iterations")
    table = Table("iteration", page.columns(page.WORDS[run.dataset.headline])[0], title=name)
    with checkpoints.at_work("evaluate", name):
        device = work.start(run.runtime, name)
        statistics, synthetic = evaluate.inputs(store, run)
        labels, task = store.load_labels(run.dataset.name, "val"), evaluate.task_of(run, statistics)
        with evaluate.tracked(store, run, {run.network: run.spec}, statistics) as tracker:
            sets = _sets(store, run, synthetic)
            for iteration, one in sets.items():
                progress.say(f"{name}: as it was after iteration {iteration}")
                given = (network, one, statistics, device, _place(name, iteration), ("val",))
                measured, _ = evaluate.predict_all(store, _at_the_last_epoch(run), *given)
                reached = [task.figures(one, labels)[task.headline] for one in measured["val"]]
                (mean, std), figure = scores.mean_and_std(reached), f"snapshots/val_{task.headline}"
                tracker.metrics({f"{figure}_mean": mean, f"{figure}_std": std}, iteration)
                table.add_row(str(iteration), page.score(Accuracy(mean, std)))
        for iteration in sets:
            evaluate.forget(_place(name, iteration), [run.network])
    progress.console.print(table)


def _at_the_last_epoch(run: Run) -> Run:
    """A protocol may take the best epoch on the test split, which is not looked at here."""
    return replace(run, evaluation=run.evaluation.model_copy(update={"score": "last"}))


def _place(name: str, iteration: int) -> str:
    """Where students are kept until all are scored."""
    return f"snapshot-{iteration}-{name}"


def _sets(store: Store, run: Run, synthetic: SyntheticSet) -> dict[int, SyntheticSet]:
    """The synthetic set as it was, with the syn_lr of that iteration; the last one is the set itself."""
    path, remedy = store.history_file(run.name), remake("distill", run.name)
    names = [f"syn_lr_{name}" for name in run.dataset.settings.modalities or ()] or ["syn_lr"]
    rates = [[row[name] for name in names] for row in files.read_numbers(path, names, remedy)]  # with which an iteration began
    snapshots, last = store.load_snapshots(run.name), synthetic.syn_lr.flatten().tolist()
    with files.understood(path, remedy):
        return {
            iteration: _as_it_was(synthetic, pixels, [*rates, last][iteration])
            for iteration, pixels in zip(snapshots.iterations.tolist(), snapshots.pixels, strict=True)
        }


def _as_it_was(synthetic: SyntheticSet, pixels: Tensor, rates: list[float]) -> SyntheticSet:
    return SyntheticSet(pixels, synthetic.labels, synthetic.syn_lr.new_tensor(rates).reshape(synthetic.syn_lr.shape))
