"""Snapshots: what students learn from the images as they were on the way, which says whether more iterations would pay.

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
    table = Table("iteration", "validation, %", title=name)
    with checkpoints.at_work("evaluate", name):
        device = work.start(run.runtime, name)
        statistics, synthetic = evaluate.inputs(store, run)
        labels = store.load_split(run.dataset.name, "val").labels
        with evaluate.tracked(store, run, {run.network: run.spec}, statistics) as tracker:
            sets = _sets(store, name, synthetic)
            for iteration, one in sets.items():
                progress.say(f"{name}: as it was after iteration {iteration}")
                given = (network, one, statistics, device, _place(name, iteration), ("val",))
                predicted, _ = evaluate.predict_all(store, _at_the_last_epoch(run), *given)
                mean, std = scores.mean_and_std([scores.accuracy(classes, labels) for classes in predicted["val"]])
                tracker.metrics({"snapshots/val_accuracy_mean": mean, "snapshots/val_accuracy_std": std}, iteration)
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


def _sets(store: Store, name: str, synthetic: SyntheticSet) -> dict[int, SyntheticSet]:
    """The synthetic set as it was, with the syn_lr of that iteration; the last one is the set itself."""
    path, remedy = store.history_file(name), remake("distill", name)
    rates = [row["syn_lr"] for row in files.read_numbers(path, ["syn_lr"], remedy)]  # with which an iteration began
    snapshots = store.load_snapshots(name)
    with files.understood(path, remedy):
        return {
            iteration: _as_it_was(synthetic, pixels, [*rates, synthetic.syn_lr.item()][iteration])
            for iteration, pixels in zip(snapshots.iterations.tolist(), snapshots.pixels, strict=True)
        }


def _as_it_was(synthetic: SyntheticSet, pixels: Tensor, syn_lr: float) -> SyntheticSet:
    return SyntheticSet(pixels, synthetic.labels, synthetic.syn_lr.new_tensor(syn_lr))
