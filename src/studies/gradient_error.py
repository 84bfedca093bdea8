"""gradient-error: how far TESLA's gradient is from the exact one, over the iterations of a distillation that goes by the exact.

Both are taken at the same images from the same draws; what TESLA drops is how a student's later steps depend on the images of
earlier ones (arXiv 2211.10586).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from src.ground import host
from src.ground.errors import UserError
from src.loops import outer
from src.loops.outer import Distilling, Loop
from src.pages.tables import Table
from src.process import progress
from src.settings.resolved import Run
from src.stages import distill, work
from src.stages.records import prepared
from src.store import files
from src.store.store import Store


@dataclass(frozen=True)
class Compared:
    """The two gradients of one iteration."""

    iteration: int
    cosine: float  # of those with respect to the images or tuples
    norm: float  # of TESLA's, in norms of the exact one
    syn_lr: float  # TESLA's derivative with respect to syn_lr, in exact ones; of tuples the part of it along these
    loss: float


def run(store: Store, run: Run, every: int) -> None:
    """Distil the run apart from its artifacts, compare the gradients every so many iterations, write table and figure."""
    distil = run.distillation
    if not distil.iterations or distil.inner_optimiser != "sgd":
        raise UserError(f"{run.name}: TESLA's gradient is of students that learn by SGD: name a run that is distilled so")
    device, exact = work.start(run.runtime, run.name), distil.model_copy(update={"gradient": "exact"})
    statistics = prepared(store, run.dataset, "train")
    distill.check_inputs(store, run)
    images, labels = distill.initial_images(store, run, statistics, device)
    loop, _, _ = distill.loop_of(store, run, statistics, images, labels)
    loop, found = Loop(**{**vars(loop), "distil": exact}), dict[int, Compared]()
    at = outer.first(loop, images)
    with progress.progress(f"gradient-error {run.name}", distil.iterations, 0) as advance:
        while at.iteration < distil.iterations:
            if at.iteration % every == 0:
                found[at.iteration] = latest = compare(loop, at)  # in place of what on_divergence restore took back
            at = outer.iterate(loop, at)
            advance(f"cosine {latest.cosine:.3f}")
    rows = list(found.values())
    paths = _write(run.name, rows)
    progress.console.print(_table(run.name, rows))
    progress.say(f"written: {', '.join(str(path) for path in paths)}")


def compare(loop: Loop, at: Distilling) -> Compared:
    """The gradients of the next iteration."""
    exact, tesla = (outer.gradient(loop, at, kind) for kind in ("exact", "tesla"))
    one, other = exact.images.flatten(), tesla.images.flatten()
    return Compared(
        at.iteration,
        F.cosine_similarity(one, other, dim=0).item(),
        (other.norm() / one.norm()).item(),
        ((tesla.syn_lr * exact.syn_lr).sum() / exact.syn_lr.square().sum()).item(),
        exact.terms.sum().item(),
    )


def _table(name: str, found: list[Compared]) -> Table:
    table = Table("iterations", "cosine", "norm", "syn_lr", title=f"TESLA's gradient of {name}, in the exact one")
    size = max(1, len(found) // 5)
    for part in (found[first : first + size] for first in range(0, len(found), size)):
        figures = torch.tensor([[one.cosine, one.norm, one.syn_lr] for one in part])
        middle = figures.median(dim=0).values.tolist()
        table.add_row(f"{part[0].iteration} to {part[-1].iteration}", *(f"{value:.3f}" for value in middle))
    return table


def _write(name: str, found: list[Compared]) -> tuple[Path, ...]:
    folder = host.workspace() / "data" / "gradient-error"
    files.write_csv(folder / f"{name}.csv", [asdict(one) for one in found])
    drawn = _figure(found)
    files.write_atomically(folder / f"{name}.png", lambda path: drawn.savefig(path, format="png", dpi=110))
    plt.close(drawn)
    return folder / f"{name}.csv", folder / f"{name}.png"


def _figure(found: list[Compared]) -> Figure:
    """Cosine and norm over the iterations; the caller closes the figure."""
    drawn, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharex=True)
    iterations = [one.iteration for one in found]
    for axis, values, words in (
        (axes[0], [one.cosine for one in found], "cosine to the exact gradient"),
        (axes[1], [one.norm for one in found], "norm, in norms of the exact one"),
    ):
        axis.plot(iterations, values, ".-", linewidth=0.8)
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set(xlabel="iteration", ylabel=words, ylim=(min(0.0, *values), None))
        axis.spines[["top", "right"]].set_visible(False)
    return drawn
