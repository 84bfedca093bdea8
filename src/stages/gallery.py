"""gallery: images of runs evolving over iterations, as one page or one animation. It makes no artifact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from src.ground.errors import UserError
from src.pages import animation, gallery
from src.pages.animation import FORMATS, Moments
from src.process import progress
from src.settings import resolved
from src.settings.resolved import Pipeline, Run
from src.stages.records import check_synthetic
from src.store import files, values
from src.store.store import Store

PAGE = ".html"


def run(store: Store, pipeline: Pipeline, names: Sequence[str], to: Path, seconds: float, scale: int | None) -> None:
    """Write what the suffix of `to` says, of these runs, or of all distilled ones."""
    kind = to.suffix.lower()
    if kind not in (PAGE, *FORMATS):
        raise UserError(f"{to} ends in none of {', '.join((PAGE, *FORMATS))}: name a page or an animation by its suffix")
    shown = [moments(store, pipeline.runs[name]) for name in _chosen(store, pipeline, names)]
    if kind == PAGE:
        files.write_text(to, gallery.html(shown, pipeline.title, seconds, scale))
        progress.say(f"page of {len(shown)} run{'s' if len(shown) > 1 else ''}: {to}")
    else:
        frames = animation.write(to, shown, seconds, scale)
        progress.say(f"animation of {frames} frame{'s' if frames > 1 else ''}: {to}")


def _chosen(store: Store, pipeline: Pipeline, names: Sequence[str]) -> Sequence[str]:
    if len(set(names)) < len(names):
        raise UserError(f"a run is named twice in {', '.join(names)}: name each once")
    resolved.check_images((pipeline.runs[name] for name in names), "gallery", "see its tuples in the report")
    evolving = [one.name for one in pipeline.runs.values() if one.distillation.iterations and not one.dataset.tuples]
    there = [name for name in evolving if store.synthetic_file(name).exists()]
    found = names or there or evolving  # with none there, the first says how to make it
    if not found:
        raise UserError(
            "no run of params.yaml is distilled from images, so that none evolve: name runs whose images are to be shown"
        )
    return found


def moments(store: Store, run: Run) -> Moments:
    """A run's images over its iterations; raises ArtifactError where they are missing, or made with other settings."""
    name = run.name
    classes = store.load_statistics(run.dataset.name).classes
    for kind in (values.SYNTHETIC, values.SNAPSHOTS):
        check_synthetic(store, run, kind)
    synthetic, snapshots = store.load_synthetic(name), store.load_snapshots(name)
    if len(snapshots.iterations):
        return Moments(name, classes, synthetic.classes, tuple(snapshots.iterations.tolist()), snapshots.pixels)
    return Moments(name, classes, synthetic.classes, (0,), synthetic.pixels[None])
