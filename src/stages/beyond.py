"""Scores beyond accuracy, from runs' own evaluations: which run is set beside which, and what is not there to be set beside.

Each is made of test accuracies, as published; but of several runs that could stand beside one, the validation split chooses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from src.ground.errors import ArtifactError
from src.maths import scores_beyond as scores
from src.maths.scores_beyond import Estimate
from src.pages.page import Result
from src.pages.standings import Standing, Standings
from src.process.progress import say
from src.settings.resolved import Run
from src.stages import results
from src.stages.records import check_scores, check_synthetic, synthetic_settings
from src.store import files
from src.store.store import Store

NO_WHOLE = "a run of all real images (ipc: all) of the same data set and network, whose protocol scores the same epoch"
NO_HARD = "a run of the same images with hard labels, network and protocol, as its own labels are soft"
NO_RANDOM = "a run of random real images, as many, with the same kind of labels, network and protocol"
NO_SOFT_RANDOM = "random real images whose labels are soft by the same teacher, which the pipeline does not make"
NO_OTHER = "a run that differs in its protocol's augmentation alone, one with and one without, and random images by both"


@dataclass(frozen=True)
class Evaluated:
    """A run with its figures."""

    run: Run
    result: Result

    @property
    def is_random(self) -> bool:
        settings = self.run.distillation
        return self.run.ipc != "all" and not settings.iterations and settings.initialisation == "random"

    def is_like(self, other: Evaluated) -> bool:
        """Whether both are about the same students of the same images' world."""
        mine, its = self.run, other.run
        return (mine.dataset, mine.spec, mine.seed) == (its.dataset, its.spec, its.seed)


Pair = tuple[Evaluated, Evaluated]  # a synthetic set and random images
Found = Mapping[str, Estimate]
Lacks = Mapping[str, str]  # score -> what it would take


def available(store: Store, runs: Mapping[str, Run]) -> list[Evaluated]:
    """Of these runs those that are evaluated, on images made with the settings of now."""
    found = []
    for run in runs.values():
        with contextlib.suppress(ArtifactError):
            check_synthetic(store, run)
            check_scores(store, run)
            found.append(Evaluated(run, results.result_of(store, run)))
    return found


def standings(chosen: Sequence[Evaluated], pool: Sequence[Evaluated]) -> Standings:
    """Scores of the chosen runs beside runs of the pool. Tuples have none, nor the references: all images, and random ones."""
    rows, lacks = {}, {}
    for own in chosen:
        if own.run.ipc != "all" and not own.is_random and not own.result.tuples:
            scored, beside, lacks[own.run.name] = _of(own, pool)
            if scored:
                rows[own.run.name] = Standing(scored, beside)
    return Standings(rows, tuple(_sentences(lacks)))


def _of(own: Evaluated, pool: Sequence[Evaluated]) -> tuple[Found, tuple[str, ...], Lacks]:
    """A run's scores, the runs beside it, and what the scores take that are not there."""
    full, hard, random, pairs = _whole(own, pool), _hard(own, pool), _random(own, pool), _augmentations(own, pool)
    found, lacks = _over_labels(own, full, hard, random)
    if pairs is None:
        lacks["ARS"] = NO_SOFT_RANDOM if own.result.soft else NO_OTHER
    else:
        augmented, plain = ((one.result.test, other.result.test) for one, other in pairs)
        found["ARS"] = scores.augmentation_robust(augmented, plain)
    others = (full if "HLR" in found else None, hard, random, *(one for pair in pairs or () for one in pair))
    return found, tuple(dict.fromkeys(one.run.name for one in others if one is not None and one is not own)), lacks


def _over_labels(
    own: Evaluated, full: Evaluated | None, hard: Evaluated | None, random: Evaluated | None
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """HLR, IOR and LRS. `hard` is the run itself where its labels are."""
    found: dict[str, Estimate] = {}
    lacks: dict[str, str] = {}
    test = own.result.test
    if full is not None and hard is not None:
        found["HLR"] = scores.hard_label_recovery(full.result.test, hard.result.test)
    else:
        lacks["HLR"] = lacks["LRS"] = NO_HARD if hard is None else NO_WHOLE
    if random is not None:
        found["IOR"] = scores.improvement_over_random(test, random.result.test)
    else:
        lacks["IOR"] = NO_SOFT_RANDOM if own.result.soft else NO_RANDOM
        lacks.setdefault("LRS", lacks["IOR"])
    if full is not None and hard is not None and random is not None:
        other = None if hard is own else hard.result.test
        found["LRS"] = scores.label_robust(full.result.test, test, random.result.test, other)
    return found, lacks


def _hard(own: Evaluated, pool: Sequence[Evaluated]) -> Evaluated | None:
    """The run itself, or the same images with hard labels by the same protocol where its own labels are soft."""
    if not own.result.soft:
        return own
    fits = (one for one in pool if one.result.pixels == own.result.pixels and one.run.evaluation == own.run.evaluation)
    return _best(one for one in fits if one.is_like(own) and not one.result.soft)


def _whole(own: Evaluated, pool: Sequence[Evaluated]) -> Evaluated | None:
    """All real images; their protocol has epochs and batches of its own, but scores the same epoch."""
    score = own.run.evaluation.score
    return _best(one for one in pool if one.run.ipc == "all" and one.is_like(own) and one.run.evaluation.score == score)


def _random(own: Evaluated, pool: Sequence[Evaluated]) -> Evaluated | None:
    """As many random images by the same protocol; the learning rate is their own, as published."""

    def set_of(one: Evaluated) -> tuple[object, ...]:
        return one.run.evaluation, one.run.ipc, one.result.images, one.result.soft

    return _best(one for one in pool if one.is_random and one.is_like(own) and set_of(one) == set_of(own))


def _augmentations(own: Evaluated, pool: Sequence[Evaluated]) -> tuple[Pair, Pair] | None:
    """The same synthetic set and random images by two protocols, with augmentation and without, which share all else."""
    made, protocol = synthetic_settings(own.run), own.run.evaluation
    twin = _best(
        one
        for one in pool
        if synthetic_settings(one.run) == made
        and bool(one.run.evaluation.augmentation) != bool(protocol.augmentation)
        and one.run.evaluation == protocol.model_copy(update={"augmentation": one.run.evaluation.augmentation})
    )
    mine, other = _pair(own, pool), None if twin is None else _pair(twin, pool)
    if mine is None or other is None:
        return None
    return (mine, other) if protocol.augmentation else (other, mine)


def _pair(own: Evaluated, pool: Sequence[Evaluated]) -> Pair | None:
    random = _random(own, pool)
    return None if random is None else (own, random)


def _best(fitting: Iterator[Evaluated]) -> Evaluated | None:
    return max(fitting, key=lambda one: one.result.val.mean, default=None)


def _sentences(lacks: Mapping[str, Lacks]) -> Iterator[str]:
    """A sentence for all runs that lack the same scores for the same reason."""
    reasons: dict[str, dict[str, list[str]]] = {}  # reason -> run -> scores
    for run, own in lacks.items():
        for score, reason in own.items():
            reasons.setdefault(reason, {}).setdefault(run, []).append(score)
    for reason, runs in reasons.items():
        for named in dict.fromkeys(tuple(own) for own in runs.values()):
            those = [run for run, own in runs.items() if tuple(own) == named]
            shown = f"{' and '.join(sorted(named))} of {', '.join(those)} {'is' if len(named) == 1 else 'are'} not shown"
            yield f"{shown}: this takes {reason}."


def track(store: Store, runs: Mapping[str, Run], found: Standings) -> None:
    """Put the scores into the MLflow rows that `evaluate` gave these very evaluations; a row that is not there yet is begun.

    Rows are found by what was scored and the scores' digest, which other numbers would change, and code that finds the same
    would not. Where the store fails no other run is tried: the next report has the same scores. Nothing is told where the
    packages for it are not installed, as a page takes none of them.
    """
    try:
        from src.tracking import tracker as tracking
    except ModuleNotFoundError as error:
        return say(f"The scores are not in MLflow, as the package {error.name} is not installed")
    for name, standing in found.rows.items():
        find = {"ast.synthetic": files.digest(store.synthetic_file(name)), **tracking.output_tag(store.scores_file(name))}
        with tracking.track(runs[name].dataset.name, name, "run", find, sampled=False) as tracker:
            scored = standing.scores.items()
            figures = {f"scores/{score.lower()}": value.mean for score, value in scored}
            tracker.figures(figures | {f"scores/{score.lower()}_std": value.std for score, value in scored})
        if tracker.gone:
            return None
    return None
