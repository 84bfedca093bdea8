"""ablate: what the parts of its method do for a run: without each, and each alone on MTT; AST's experts' two also together.

Every seed has experts, draws and students of its own; variants of one seed share the experts that they have in common. What is
finished is kept by its content, so that the same command goes on after whatever ended it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from rich import box
from rich.console import Console

from src.ground import host
from src.ground.errors import UserError
from src.ground.seeding import seed_of
from src.maths import scores, significance
from src.pages import markdown, page
from src.pages.page import AST_PARTS, PARTS, Accuracy, lowered
from src.pages.tables import Table
from src.process import progress
from src.settings.distillation import CERTAINTY
from src.settings.resolved import Run
from src.settings.studies import Tune
from src.store import files
from src.store.store import Store
from src.studies import processes, repeated, usefulness, variants
from src.studies.repeated import Line, Problems
from src.studies.usefulness import Experts, Point
from src.studies.variants import Changes
from src.tracking import tracker as tracking
from src.tracking.tracker import Nest

# the section and fields of a part, each with its value without the part: in the order of PARTS
SWITCHES: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("experts", {"clipping_loss": False}),
    ("experts", {"gradient_penalty": 0.0}),
    ("distill", {"initialisation": "random"}),
    ("distill", {"balanced_loss": False}),
    ("distill", {"intermediate_loss": "off"}),
    ("distill", {"weight_perturbation": 0.0}),
    ("distill", {"target": "end", "nearest_by": "l2"}),
    ("distill", {"ema": None}),
    ("distill", {"labels": "fixed", "lr_label": 0.0, "label_momentum": 0.0, "label_certainty": CERTAINTY}),
    ("distill", {"start_growth": None}),
    ("distill", {"unmatched_depth": 0.0}),
    ("distill", {"objective": "matching", "real": None}),
    ("distill", {"gradient": "exact"}),
    ("experts", {"sharpness": 0.0}),
    ("distill", {"similarity": None}),
    ("distill", {"normalised": "all"}),
)
USUAL = (True, 2.0, "representative", True, "ramp", 1.0)  # with the part where the run itself has none: of AST's
WHOLE, NONE = "the run as it is", "MTT: no part"
OF_EXPERTS = {part for part, (section, _) in enumerate(SWITCHES, 1) if section == "experts"}
AST_EXPERTS = (1, 2)  # of these AST's
OF_IMAGES, OF_TUPLES = {2, 3, 9, 12}, {15, 16}  # parts that only these can have


@dataclass(frozen=True)
class Arm:
    """One row of the table: which parts are on, and the row that it is compared with."""

    label: str
    parts: tuple[int, ...]
    against: str | None


@dataclass(frozen=True)
class Outcome:
    """What an arm reached: the mean of each seed's students by split, and how it differs from another arm."""

    label: str
    parts: tuple[int, ...]
    seeds: Mapping[str, tuple[float, ...]]
    experts: tuple[Experts, ...]  # of each seed
    against: str | None
    difference: float | None = None  # on the validation split
    p: float | None = None
    problem: str = ""


def run(store: Store, base: Run, tune: Tune, seeds: int, test: bool, workers: int | None) -> None:
    """Make what is not there yet, then print and write the table."""
    if not base.distillation.iterations:
        raise UserError(f"runs.{base.name} has 0 iterations: there are no parts to take away; name a run that is distilled")
    if not base.distillation.matches or base.distillation.inner_optimiser != "sgd":
        raise UserError(f"runs.{base.name} is not MTT with parts: name a run whose students learn by SGD, matched to experts")
    repeated.check_seeds(base)
    splits = ("val", "test") if test else ("val",)
    dataset, experiment = base.dataset.name, f"{base.dataset.name}-studies"
    workspace = repeated.workspace(store, "ablate", base.name, dataset)
    workspace.lend(dataset, test)
    wanted = {arm: _of_seeds(base, tune, arm, seeds) for arm in arms(base)}
    find = {"ast.ablation": workspace.folder.name}
    with tracking.track(experiment, f"ablate {base.name}", "ablation", find) as tracker:
        nest = Nest(experiment, tracker.opening)
        lines = {arm.label: own for arm, own in wanted.items()}
        count = processes.count(base.runtime, workers)
        problems = repeated.make("ablate", base.runtime, lines, workspace, nest, splits, count)
        tracker.end_children()
        with workspace.entered():
            found = outcomes(wanted, splits, problems)
        written = _write(base.name, found, seeds, page.WORDS[base.dataset.headline])
        for path in written:
            tracker.file(path)
    _show(found, base.name, seeds, page.WORDS[base.dataset.headline])
    progress.say(f"written: {', '.join(str(path) for path in written)}")


def arms(base: Run) -> tuple[Arm, ...]:
    """The run, it without parts that it has, no part, and parts alone: each part, and the experts' together."""
    can = _parts(base)
    own = tuple(part for part in can if _value(base, part) != _off(base, part))
    named = {lowered(PARTS[part - 1][0]): (part,) for part in can if part <= AST_PARTS or part in own}
    groups = named | ({"the experts' parts": AST_EXPERTS} if set(AST_EXPERTS) <= set(can) else {})
    without = (
        Arm(f"without {name}", tuple(part for part in own if part not in group), WHOLE)
        for name, group in groups.items()
        if set(group) <= set(own)
    )
    alone = (Arm(f"MTT and {name}", group, NONE) for name, group in groups.items())
    return (Arm(WHOLE, own, None), *without, Arm(NONE, (), WHOLE), *alone)


def _parts(base: Run) -> tuple[int, ...]:
    """Those that a run on its data set can have."""
    others = OF_IMAGES if base.dataset.tuples else OF_TUPLES
    begun = {3, 15} if base.distillation.initialisation in ("given", "run") else set()  # no parts, but what it begins with
    return tuple(part for part in range(1, len(PARTS) + 1) if part not in others | begun)


def _value(base: Run, part: int) -> Mapping[str, Any]:
    """The part's fields as the run has them."""
    section, fields = SWITCHES[part - 1]
    settings = base.distillation if section == "distill" else base.experts.settings
    told = settings.model_dump()  # without those that are off
    return {field: told.get(field, off) for field, off in fields.items()}


def _off(base: Run, part: int) -> Mapping[str, Any]:
    """A run that begins with noise, say, has no representative initialisation, and goes on beginning so."""
    own, (_, fields) = _value(base, part), SWITCHES[part - 1]
    return own if "initialisation" in fields and own["initialisation"] != "representative" else fields


def changes(base: Run, parts: Sequence[int], seed: int) -> Changes:
    """What makes the run have these parts and no others; a part has the strength that the run gives it."""
    sections: dict[str, dict[str, Any]] = {"distill": {}, "experts": {}}
    for part in _parts(base):
        section, fields = SWITCHES[part - 1]
        own, off = _value(base, part), _off(base, part)
        usual = dict.fromkeys(fields, USUAL[part - 1]) if part <= AST_PARTS else {}
        sections[section] |= (own if own != off else usual) if part in parts else off
    return Changes(**sections, seed=seed)


def _of_seeds(base: Run, tune: Tune, arm: Arm, seeds: int) -> list[Line]:
    # not the run's own seed, by which a study may have chosen its settings
    roots = [seed_of(base.seed, "ablate", number) for number in range(seeds)]
    protocol = variants.protocol_of(base, tune)
    return [repeated.line(base, tune, {base.name: changes(base, arm.parts, root)}, root, protocol) for root in roots]


# -- what was found


def outcomes(wanted: Mapping[Arm, Sequence[Line]], splits: tuple[str, ...], problems: Problems) -> list[Outcome]:
    """A row an arm, inside the workspace; an arm with a problem has no figures."""
    means = {arm.label: repeated.means(own, splits) for arm, own in wanted.items()}
    measured: dict[str, Experts] = {}
    found = []
    for arm, own in wanted.items():
        seeds = means[arm.label]
        other = means[arm.against] if arm.against else None
        if not seeds:
            problem = repeated.problem(own, problems)
            found.append(Outcome(arm.label, arm.parts, seeds, (), arm.against, problem=problem))
            continue
        made = [line[-1] for line in own]
        for variant in made:
            if variant.experts not in measured:
                measured[variant.experts] = usefulness.measure(variant)
        experts = tuple(measured[variant.experts] for variant in made)
        difference = significance.paired(other["val"], seeds["val"]) if other else None
        figures = (difference.mean, difference.p) if difference else (None, None)
        found.append(Outcome(arm.label, arm.parts, seeds, experts, arm.against, *figures))
    return found


def _points(found: Sequence[Outcome]) -> list[Point]:
    """Of the arms that differ from the run, or from MTT, in their experts alone."""
    whole = next(one.parts for one in found if one.label == WHOLE)
    groups = {frozenset(whole).difference(OF_EXPERTS): "with the run's other parts", frozenset(): "with no other part"}
    distinct = {one.parts: one for one in found if one.seeds}.values()  # a run without parts is MTT
    return [
        Point(experts, accuracy, groups[others])
        for one in distinct
        if (others := frozenset(one.parts).difference(OF_EXPERTS)) in groups
        for experts, accuracy in zip(one.experts, one.seeds.get("val", ()), strict=True)
    ]


def _rows(found: Sequence[Outcome]) -> Iterator[tuple[str, ...]]:
    for one in found:
        parts = " ".join(map(str, one.parts)) or "-"
        if not one.seeds:
            yield (one.label, parts, "failed", "-", "", "", one.problem)
            continue
        accuracies = [
            page.score(Accuracy(*scores.mean_and_std(one.seeds[s]))) if s in one.seeds else "-" for s in ("val", "test")
        ]
        if one.difference is None or one.p is None:
            yield (one.label, parts, *accuracies, "", "", "")
        else:
            verdict = f"{'beyond noise' if one.p < significance.LEVEL else 'may be noise'}, against {one.against}"
            yield (one.label, parts, *accuracies, page.points(one.difference), f"{one.p:.2g}", verdict)


BEHIND = ("points", "p", "verdict")


def _show(found: Sequence[Outcome], base: str, seeds: int, figure: str) -> None:
    """Print the table as narrow as a terminal: what is tested against the run, then what is tested against MTT."""
    tested = any("test" in one.seeds for one in found)
    on_val, on_test = page.columns(figure)
    table = Table("variant", "parts", on_val, box=box.SIMPLE_HEAD, title=f"{base}, {seeds} seeds")
    for name in (*((on_test,) if tested else ()), "points", "p"):
        table.add_column(name, justify="right")
    for one, (label, parts, val, test, points, p, _) in zip(found, _rows(found), strict=True):
        mark = "*" if one.p is not None and one.p < significance.LEVEL else " "
        table.add_row(label, parts, val, *((test,) if tested else ()), points, f"{p}{mark}", end_section=one.label == NONE)
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(
        f"points and p: against the run; below MTT, against MTT. *: beyond noise, p < {significance.LEVEL}", style="dim"
    )
    for one in found:
        if one.problem:
            console.print(f"{one.label} failed: {one.problem}", soft_wrap=True)


EXPERTS_HEADER = ("experts' parts", "squared parameter step", "no student follows, %", "{} of experts, %")
CORRELATIONS_HEADER = ("experts", "distilled {} goes with", "rank correlation", "p")


def _experts_rows(found: Sequence[Outcome]) -> Iterator[tuple[str, ...]]:
    """A row a kind of experts."""
    kinds = {tuple(part for part in one.parts if part in OF_EXPERTS): one.experts for one in found if len(one.experts) > 1}
    for parts, experts in sorted(kinds.items()):
        (step, spread), accuracy = (
            scores.mean_and_std([one.parameter_step for one in experts]),
            Accuracy(*scores.mean_and_std([one.accuracy for one in experts])),
        )
        lost = [one.common_logit_step / one.parameter_step for one in experts if one.common_logit_step is not None]
        unfollowed = page.score(Accuracy(*scores.mean_and_std(lost))) if lost else "-"
        yield " ".join(map(str, parts)) or "-", f"{step:.3g} ± {spread:.2g}", unfollowed, page.score(accuracy)


def _with(header: tuple[str, ...], figure: str) -> tuple[str, ...]:
    return tuple(name.format(figure) for name in header)


def _write(base: str, found: Sequence[Outcome], seeds: int, figure: str) -> tuple[Path, ...]:
    folder = host.workspace() / "data" / "ablate"
    files.write_json(folder / f"{base}.json", {"run": base, "variants": [asdict(one) for one in found]})
    text = markdown.table(("variant", "parts", *page.columns(figure), *BEHIND), list(_rows(found)), left=(0, 1, 6))
    experts = markdown.table(_with(EXPERTS_HEADER, figure), list(_experts_rows(found)), left=(0,))
    about = (
        f"Mean and standard deviation over {seeds} seeds, each with experts, draws and students of its own; points and p\n"
        f"(paired t-test over the seeds, each row by itself) of validation {figure}. MTT is the run with all\n"
        "parts off, all else kept."
    )
    beside = (
        "The experts, over the epochs that are matched: their mean squared parameter step of an epoch (small is smooth),\n"
        f"how much of it only shifts the logits of all classes alike, which no student follows, and their validation {figure}\n"
        f"after the last of them. {base}.png shows what was distilled from them."
    )
    points = _points(found)
    correlations = markdown.table(
        _with(CORRELATIONS_HEADER, figure), list(usefulness.correlations(points, figure)), left=(0, 1)
    )
    drawn = usefulness.figure(points, figure)
    files.write_atomically(folder / f"{base}.png", lambda path: drawn.savefig(path, format="png", dpi=110))
    plt.close(drawn)
    texts = (f"# What the parts do: {base}", text, about, experts, beside, correlations)
    files.write_text(folder / f"{base}.md", "\n\n".join(texts) + "\n")
    return tuple(folder / f"{base}.{kind}" for kind in ("json", "md", "png"))
