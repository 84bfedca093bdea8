"""The outer loop of distillation: what it carries from one iteration to the next, what is stored of it, its second chances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from src.ground.errors import DivergenceError, UserError
from src.ground.seeding import generator
from src.loops.stored import Stored
from src.maths import derivatives, distillation
from src.maths.derivatives import PASSES, Backend, Derivatives, Loss
from src.maths.distillation import Figures, Real, Start, State
from src.maths.inner_loop import MatchingGradient
from src.maths.networks import FlatNetwork, TupleShape
from src.maths.pixels import Space
from src.process import progress, stopping
from src.settings.distillation import Distillation
from src.settings.networks import Network
from src.settings.runtime import Runtime

ANCHOR_ITERATIONS = 100  # between two states to restore: a fixed number, so that the same bytes come again
RESTORES = 3  # at most, each halves lr_img

Row = dict[str, Any]
Read = Callable[[int, int, int], Tensor]  # (expert, start, stop) -> theta*_start .. theta*_(stop - 1)


@dataclass(frozen=True)
class Snapshot:
    """What is kept of an iteration, on the CPU."""

    pixels: Tensor  # (S, C, H, W)
    labels: Tensor | None = None  # (S, K), or of tuples (S, q), where they are learned


@dataclass(frozen=True)
class Distilling:
    """The outer loop on its way: all that it carries from one iteration to the next."""

    state: State
    anchor: State  # of the last iteration that is a multiple of ANCHOR_ITERATIONS
    rows: tuple[Row, ...]  # one for each iteration done
    snapshots: Mapping[int, Snapshot]  # by iteration
    restores: tuple[int, ...] = ()  # iterations at which it diverged

    @property
    def iteration(self) -> int:
        return len(self.rows)

    def stored(self) -> Stored:
        """What its checkpoint holds."""
        tensors = {
            f"{which}.{name}": value
            for which in ("state", "anchor")
            for name, value in vars(getattr(self, which)).items()
            if value is not None
        }
        tensors |= {f"snapshot.{iteration}": one.pixels for iteration, one in self.snapshots.items()}
        tensors |= {f"labels.{iteration}": one.labels for iteration, one in self.snapshots.items() if one.labels is not None}
        return tensors, {"rows": self.rows, "restores": self.restores}


@dataclass(frozen=True)
class Loop:
    """What every iteration takes."""

    name: str
    seed: int
    distil: Distillation
    experts: int  # so many
    read: Read  # their snapshots
    network: FlatNetwork
    derivatives: Derivatives
    labels: Tensor  # (S,) classes, or (S, K) probabilities, of the initial images
    space: Space
    logits: Tensor | None = None  # (S, K), that learned labels start from
    syn_lr: float | Sequence[float] | None = None  # the initial run's, where the settings' lr_init is null; that of tuples
    real: Real | None = None  # of the objective on real images
    tuples: TupleShape | None = None

    @property
    def noun(self) -> str:
        return "tuples" if self.tuples else "images"

    @property
    def similarity(self) -> Tensor | None:
        """(S, q), that learned targets of tuples start from."""
        return None if self.distil.similarity is None else self.labels

    @property
    def columns(self) -> Tensor | None:
        """(D,), learning rates of tuples' numbers as shares of lr_img, where modalities have their own."""
        rates = self.distil.lr_modalities
        if rates is None or self.tuples is None:
            return None
        return torch.cat([torch.full((one.numbers,), rates[one.name]) for one in self.tuples.modalities]) / self.distil.lr_img

    @property
    def moments(self) -> frozenset[int]:
        """Iterations at which images are kept, first and last among them."""
        total = self.distil.iterations
        return frozenset({*range(0, total, self.distil.snapshot_every), total})


def labels(loop: Loop, state: State) -> Tensor:
    """The labels that are kept with the images, (S,) classes or (S, K) probabilities."""
    _, soft = state.scored
    return loop.labels if soft is None else soft


def differentiate(
    distil: Distillation,
    asked: Runtime,
    spec: Network,
    network: FlatNetwork,
    images: Tensor,
    loss: Loss = F.cross_entropy,
) -> tuple[Derivatives, Backend, str]:
    """The derivatives of steps on these images with the network of `spec`, how they are taken, and what to say of it.

    Raises UserError where the starts' convolutions are to be perturbed, and the network has none.
    """
    if distil.weight_perturbation and not network.convolutions:
        raise UserError(
            f"weight_perturbation is {distil.weight_perturbation:g}, of the convolutions' weights, and a network of the family "
            f"{spec.family} has none: set it to 0"
        )
    batch = min(distil.batch_syn or len(images), len(images))
    passes = PASSES * distil.iterations * distil.syn_steps * distil.trajectories_per_iteration * batch
    backend, note = derivatives.choose(asked, images.device, spec, passes * network.forward_flops(images[:1]))
    found = Derivatives(network, asked.precision == "bfloat16", backend, asked.memory_mib, loss)
    found.sweep, found.second = stopping.interruptible(found.sweep), stopping.interruptible(found.second)  # type: ignore[method-assign]
    return found, backend, note


def first(loop: Loop, images: Tensor, pixels: Tensor | None = None) -> Distilling:
    """The outer loop before its first iteration, at images (S, C, H, W) on the device; `pixels` where they were given so."""
    state = distillation.start(images, loop.distil, loop.logits, loop.syn_lr, loop.similarity)
    kept = _snapshot(loop, state)
    return Distilling(state, state, (), {0: kept if pixels is None else replace(kept, pixels=pixels)})


def resumed(loop: Loop, stored: Stored | None) -> Distilling | None:
    """The outer loop that a checkpoint holds; None where there is none.

    It may be that of a run with fewer iterations or, if it was stopped, with more; images are kept at this run's moments.
    """
    if stored is None:
        return None
    tensors, facts = stored
    rows = tuple(facts["rows"])
    parts: dict[str, dict[str, Tensor]] = {"state": {}, "anchor": {}, "snapshot": {}, "labels": {}}
    for name, value in tensors.items():
        kind, _, key = name.partition(".")
        parts[kind][key] = value
    device = loop.labels.device
    state, anchor = (State(**{key: value.to(device) for key, value in parts[kind].items()}) for kind in ("state", "anchor"))
    kept = {int(key): Snapshot(pixels, parts["labels"].get(key)) for key, pixels in parts["snapshot"].items()}
    kept.setdefault(len(rows), _snapshot(loop, state))  # of iteration 0 as it was given
    snapshots = {moment: kept[moment] for moment in sorted(kept) if moment in loop.moments}
    return Distilling(state, anchor, rows, snapshots, tuple(facts["restores"]))


def iterate(loop: Loop, at: Distilling) -> Distilling:
    """The next iteration done; or, where it diverges and the settings want it, the last anchor again."""
    settings = loop.distil.model_copy(update={"lr_img": loop.distil.lr_img / 2 ** len(at.restores)})
    drawn, starts, draws = _drawn(loop, at.iteration)
    given = (loop.network, loop.derivatives, at.state, loop.labels, starts, settings, draws)
    try:
        state, figures = distillation.iterate(*given, at.iteration, loop.real, _on(at.state.images, loop.columns))
    except DivergenceError as error:
        good = f"last good {loop.distil.loss} {at.rows[-1]['matching_loss']:g}" if at.rows else "no good iteration before it"
        of = f"expert {drawn['expert']}, start epoch {drawn['start_epoch']}, " if drawn else ""
        where = f"iteration {at.iteration} ({of}{good})"
        return _restored(loop, at, f"run {loop.name} diverged at {where}: {error}")
    rates = {f"syn_lr_{name}": rate for name, rate in zip(loop.tuples.names if loop.tuples else (), figures.rates, strict=True)}
    row = {"iteration": at.iteration, **drawn, **_row(figures, settings, at.iteration), **rates, "lr_img": settings.lr_img}
    done = replace(at, state=state, rows=(*at.rows, row))
    if done.iteration in loop.moments:
        done = replace(done, snapshots={**at.snapshots, done.iteration: _snapshot(loop, state)})
    return replace(done, anchor=state) if done.iteration % ANCHOR_ITERATIONS == 0 else done


def _on(like: Tensor, columns: Tensor | None) -> Tensor | None:
    return None if columns is None else columns.to(like)


def gradient(loop: Loop, at: Distilling, kind: Literal["exact", "tesla"]) -> MatchingGradient:
    """The gradient that the next iteration goes by, from its own draws, exact or TESLA's."""
    _, starts, draws = _drawn(loop, at.iteration)
    settings = loop.distil.model_copy(update={"gradient": kind})
    given = (loop.network, loop.derivatives, at.state, loop.labels, starts, settings, draws, loop.real)
    _, found = distillation.differentiated(*given)
    return distillation.mean(found)


def _drawn(loop: Loop, iteration: int) -> tuple[dict[str, str], list[Start], torch.Generator]:
    """What is drawn for an iteration, in words and as snapshots, and the generator of its other draws."""
    draws = generator(loop.seed, "distill", "iteration", iteration)
    drawn, starts = _starts(loop, iteration, draws) if loop.distil.matches else ({}, [])
    return drawn, starts, draws


def _snapshot(loop: Loop, state: State) -> Snapshot:
    images, soft = state.scored
    return Snapshot(loop.space.to_pixels(images.cpu()), None if soft is None else soft.cpu())


def _starts(loop: Loop, iteration: int, draws: torch.Generator) -> tuple[dict[str, str], list[Start]]:
    """The experts and start epochs drawn for an iteration, in words and as snapshots."""
    distil = loop.distil
    drawn = [distillation.draw_start(loop.experts, distil, draws, iteration) for _ in range(distil.trajectories_per_iteration)]
    starts = []
    for expert, epoch in drawn:
        snapshots = loop.read(expert, epoch, epoch + distil.expert_epochs + 1)
        starts.append(Start(snapshots.to(loop.labels.device), epoch))
    experts, epochs = (" ".join(str(number) for number in column) for column in zip(*drawn, strict=True))
    return {"expert": experts, "start_epoch": epochs}, starts


def _restored(loop: Loop, at: Distilling, problem: str) -> Distilling:
    """The loop at its last anchor; raises DivergenceError where the settings or too many restores forbid it."""
    if loop.distil.on_divergence == "stop":
        raise DivergenceError(f"{problem}; or set on_divergence to restore, which goes back and halves lr_img")
    if len(at.restores) == RESTORES:
        raise DivergenceError(f"{problem}; lr_img was halved {RESTORES} times, after iterations {at.restores}")
    iteration = at.iteration // ANCHOR_ITERATIONS * ANCHOR_ITERATIONS
    restores = (*at.restores, at.iteration)
    lr_img = loop.distil.lr_img / 2 ** len(restores)
    progress.say(f"Warning: {problem}. Restored at iteration {iteration} with lr_img {lr_img:g}")
    snapshots = {moment: one for moment, one in at.snapshots.items() if moment <= iteration}
    return Distilling(at.anchor, at.anchor, at.rows[:iteration], snapshots, restores)


def _row(figures: Figures, distil: Distillation, iteration: int) -> dict[str, float]:
    """The loss and its terms, and what only some methods have: where a student was matched, and the bound of start epochs."""
    terms = list(figures.terms)
    real = {} if distil.objective == "matching" else {"real_loss": terms.pop()}
    way_points = {f"way_point_{k}": value for k, value in enumerate(terms, start=1)}
    matched = {"matched_step": figures.steps[0]} if distil.target == "nearest" else {}
    window = {} if distil.start_growth is None else {"start_bound": distillation.start_bound(iteration, distil)}
    return {
        "matching_loss": figures.matching_loss,
        **way_points,
        **real,
        **matched,
        **window,
        "syn_lr": figures.syn_lr,
        "grad_norm_images": figures.grad_norm_images,
        "grad_norm_syn_lr": figures.grad_norm_syn_lr,
    }
