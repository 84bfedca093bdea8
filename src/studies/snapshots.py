"""Snapshots: what students learn from the images as they were on the way, which says whether more iterations would pay.

Iterations are chosen by it, so it looks at the validation split alone.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from src.ground.errors import UserError
from src.ground.params import Params
from src.io import artifacts, checkpoints, files, page, progress
from src.io.artifacts import SyntheticSet
from src.io.page import Accuracy
from src.io.tables import Table
from src.maths import scores
from src.stages import evaluate, work


def run(params: Params, name: str) -> None:
    """Score every snapshot of the run `name`: on the screen, and as a curve in its MLflow run.

    Students are trained by the run's protocol, and scored after the last epoch.
    """
    settings = params.run(name)
    if not params.distillations[name].iterations:
        raise UserError(f"{name}: is not distilled and has no snapshots: name a run with iterations")
    table = Table("iteration", "validation, %", title=name)
    with checkpoints.at_work("evaluate", name):
        device = work.start(params.runtime, name)
        statistics, synthetic = evaluate.inputs(params, name)
        labels = artifacts.load_split(settings.dataset, "val").labels
        with evaluate.tracked(params, name, [settings.network], statistics) as tracker:
            sets = _sets(name, synthetic)
            for iteration, one in sets.items():
                progress.say(f"{name}: as it was after iteration {iteration}")
                given = (settings.network, one, statistics, device, _place(name, iteration), ("val",))
                predicted, _ = evaluate.predict_all(_at_the_last_epoch(params, name), name, *given)
                mean, std = scores.mean_and_std([scores.accuracy(classes, labels) for classes in predicted["val"]])
                tracker.metrics({"snapshots/val_accuracy_mean": mean, "snapshots/val_accuracy_std": std}, iteration)
                table.add_row(str(iteration), page.score(Accuracy(mean, std)))
        for iteration in sets:
            evaluate.forget(_place(name, iteration), [settings.network])
    progress.console.print(table)


def _at_the_last_epoch(params: Params, name: str) -> Params:
    """A protocol may take the best epoch on the test split, which is not looked at here."""
    key = params.runs[name].evaluate
    return replace(params, evaluate={**params.evaluate, key: params.evaluate[key].model_copy(update={"score": "last"})})


def _place(name: str, iteration: int) -> str:
    """Where students are kept until all are scored."""
    return f"snapshot-{iteration}-{name}"


def _sets(name: str, synthetic: SyntheticSet) -> dict[int, SyntheticSet]:
    """The synthetic set as it was, with the syn_lr of that iteration; the last one is the set itself."""
    path, remedy = artifacts.history_file(name), artifacts.remake("distill", name)
    rates = [row["syn_lr"] for row in files.read_numbers(path, ["syn_lr"], remedy)]  # with which an iteration began
    snapshots = artifacts.load_snapshots(name)
    with files.understood(path, remedy):
        return {
            iteration: _as_it_was(synthetic, pixels, [*rates, synthetic.syn_lr.item()][iteration])
            for iteration, pixels in zip(snapshots.iterations.tolist(), snapshots.pixels, strict=True)
        }


def _as_it_was(synthetic: SyntheticSet, pixels: Tensor, syn_lr: float) -> SyntheticSet:
    return SyntheticSet(pixels, synthetic.labels, synthetic.syn_lr.new_tensor(syn_lr))
