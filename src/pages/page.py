"""What the report says, and its form as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2

from src.ground.durations import duration
from src.maths.scores_beyond import Estimate
from src.pages import standings
from src.pages.charts import Chart, Scale
from src.pages.sheets import Sheet
from src.pages.standings import Standings
from src.pages.tuples import Shown
from src.settings.resolved import Run
from src.store.cost import Cost

TEMPLATE, STYLE, TUPLES = "report.html.j2", "style.css.j2", "tuples.html.j2"
PARTS = (
    ("Clipping loss", "experts"),
    ("Gradient penalty", "experts"),
    ("Representative initialisation", "synthetic images"),
    ("Balanced loss", "student"),
    ("Intermediate matching loss", "student"),
    ("Weight perturbation", "student"),
    ("Nearest step", "student"),
    ("Running mean", "synthetic images"),
    ("Soft labels", "labels"),
    ("Growing window of starts", "student"),
    ("Shallow layers left out", "student"),
    ("Loss on real images", "student"),
    ("TESLA's gradient", "student"),
    ("Sharpness-aware steps", "experts"),
    ("Learned similarity", "labels"),
    ("Normalised by encoder", "student"),
)  # numbered from 1, and what each acts on
AST_PARTS = 6  # the first of these: the others are shown where a run has them
MARK = "†"  # of test accuracies that were chosen on the test split
SELECTED = "each student's best epoch on the test split: chosen on it, so higher than an honest choice, for comparison only"
Accuracy = Estimate  # of students
ACCURACY = "accuracy"
WORDS = {ACCURACY: ACCURACY, "recall": "mean recall"}  # what students are judged by, as metrics name it -> in words
# images that are not distilled, by their initialisation
REAL = {
    "random": "random real images",
    "representative": "representative real images",
    "noise": "noise",
    "k_means_embeddings": "real images by K-means",
    "herding": "real images by herding",
    "k_center": "real images by k-center",
    "classified": "rightly classified real images",
    "given": "imported images",
    "run": "images of another run",
}


REAL_TUPLES = {
    "random": "random real tuples",
    "noise": "noise",
    "herding": "real tuples by herding",
    "k_center": "real tuples by k-center",
    "run": "tuples of another run",
}


@dataclass(frozen=True)
class Result:
    """One run's row."""

    run: str
    dataset: str
    ipc: int | str
    images: int
    share: float  # of the training split's images
    method: str
    initialisation: str
    distilled: bool
    parts: tuple[int, ...]  # numbers of the parts that are on
    val: Accuracy
    test: Accuracy
    students: tuple[float, ...]  # test accuracy of each
    selected: bool  # whether these are of the best epoch on the test split
    soft: bool = False  # whether its labels are probabilities
    pixels: str = ""  # digest of its images, equal for the same ones with other labels
    colour: int | None = None  # None where not distilled
    gain: float | None = None  # mean test accuracy above the baseline's; None without one
    matches: bool = True  # whether students were matched to experts, where it is distilled
    tuples: bool = False  # whether it is of tuples, whose mean recall stands for the accuracy

    @property
    def whole(self) -> bool:
        return self.ipc == "all"

    @property
    def noun(self) -> str:
        return "tuples" if self.tuples else "images"

    @property
    def figure(self) -> str:
        return WORDS["recall" if self.tuples else "accuracy"]

    @property
    def label(self) -> str:
        """The method, in words where the images are as they were found."""
        if self.tuples:
            return "all real tuples" if self.whole else self.method if self.distilled else f"{REAL_TUPLES[self.initialisation]}"
        return "all real images" if self.whole else self.method if self.distilled else REAL[self.initialisation]

    @property
    def mark(self) -> str:
        return MARK if self.selected else ""


@dataclass(frozen=True)
class Group:
    """Runs of one data set and number of images per class, which are compared with each other."""

    dataset: str
    ipc: int | str
    results: tuple[Result, ...]
    best: Result  # the best distilled run, or the best of all, chosen on the validation split
    baseline: Result | None
    whole: Result | None  # the data set's full-data run

    @property
    def distilled(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.distilled)


@dataclass(frozen=True)
class Matrix:
    """Test scores of runs by the network that their students have; None where a run is not scored with it."""

    networks: tuple[str, ...]
    rows: tuple[tuple[Result, tuple[Accuracy | None, ...]], ...]

    @property
    def noun(self) -> str:
        return nouns(result for result, _ in self.rows)

    @property
    def figure(self) -> str:
        return figures(result for result, _ in self.rows)


@dataclass(frozen=True)
class Panel:
    """Test accuracies of one data set on one axis."""

    dataset: str
    groups: tuple[Group, ...]
    scale: Scale


@dataclass(frozen=True)
class Pictures:
    """One run's images."""

    result: Result
    sheets: tuple[Sheet, ...]
    beyond: float  # fraction of pixels outside [0, 1]
    classes: int
    certainty: float | None = None  # of soft labels: the mean probability of the likeliest class


@dataclass(frozen=True)
class Gallery:
    """The images of one group, to be compared by eye."""

    group: Group
    runs: tuple[Pictures, ...]


@dataclass(frozen=True)
class Film:
    """One image of each class over the iterations."""

    result: Result
    iterations: tuple[int, ...]
    frames: tuple[Sheet, ...]


@dataclass(frozen=True)
class Curves:
    """Charts that stand side by side under one heading."""

    heading: str
    charts: tuple[Chart, ...]
    window: int = 1  # iterations of the running mean
    real: bool = False  # whether a loss on real images is among them


@dataclass(frozen=True)
class Spent:
    """What a set of experts or a run cost, a column a stage; None where it was not measured here."""

    name: str
    detail: str
    costs: tuple[Cost | None, ...]


@dataclass(frozen=True)
class Contrast:
    """What sets a few runs apart: rows of a heading and a cell a run, and sentences about pairs."""

    runs: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    verdicts: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """All that the page shows."""

    title: str
    runs: Mapping[str, Run]  # all that it is about
    groups: tuple[Group, ...]
    panels: tuple[Panel, ...]
    matrix: Matrix | None
    standings: Standings
    galleries: tuple[Gallery, ...]
    films: tuple[Film, ...]
    matching: tuple[Curves, ...]
    experts: tuple[Curves, ...]
    experts_spent: tuple[Spent, ...]
    runs_spent: tuple[Spent, ...]
    learned_rates: dict[str, float]  # syn_lr of every run, as its students use it
    tuples: tuple[Shown, ...] = ()  # of each run of tuples
    contrast: Contrast | None = None  # of a page that compares a few runs

    @property
    def results(self) -> tuple[Result, ...]:
        """In the order of params.yaml."""
        found = {result.run: result for group in self.groups for result in group.results}
        return tuple(found[name] for name in self.runs)

    @property
    def noun(self) -> str:
        return nouns(self.results)

    @property
    def figure(self) -> str:
        return figures(self.results)

    @property
    def hero(self) -> Film | None:
        """Of the best distilled runs, the one with the fewest images; None where nothing is distilled."""
        best = {group.best.run for group in self.groups}
        return min((film for film in self.films if film.result.run in best), key=lambda film: film.result.images, default=None)


def nouns(results: Iterable[Result]) -> str:
    """What all of these are of: images, tuples, or some of both."""
    return " or ".join(dict.fromkeys(result.noun for result in results))


def figures(results: Iterable[Result]) -> str:
    """What the students of all of these are judged by."""
    return " or ".join(dict.fromkeys(result.figure for result in results))


def columns(figure: str) -> tuple[str, str]:
    """Headings of figures in percent, on the validation and the test split; what goes without saying is accuracy."""
    said = "" if figure == ACCURACY else f" {figure}"
    return f"validation{said}, %", f"test{said}, %"


def lowered(name: str) -> str:
    """A part's name within a sentence."""
    return name if name[:2].isupper() else name[0].lower() + name[1:]


def shown_parts(results: Iterable[Result]) -> list[tuple[int, str, str]]:
    """Number, name and place of AST's parts, and of those others that one of these runs has."""
    used = {part for result in results for part in result.parts}
    parts = [(number, *part) for number, part in enumerate(PARTS, start=1)]
    return [part for part in parts if part[0] <= AST_PARTS or part[0] in used]


def html(page: Page) -> str:
    """The page as one HTML document."""
    return filled(TEMPLATE, page=page, parts=shown_parts(page.results), mark=MARK, selected=SELECTED, unit=standings.unit)


def filled(template: str, **values: object) -> str:
    """A template of this folder with these values, in the style of all pages."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=percent, share=share, points=points, duration=duration, per_class=per_class)
    return environment.get_template(template).render(style=STYLE, tuples_of=TUPLES, **values)


def score(accuracy: Accuracy) -> str:
    """Mean and standard deviation, in percent."""
    return f"{percent(accuracy.mean)} ± {percent(accuracy.std)}"


def percent(fraction: float) -> str:
    return f"{fraction * 100:.1f}"


def share(fraction: float) -> str:
    """In percent, small ones by two digits that count: ten images of 45,000 are not nothing."""
    return f"{fraction * 100:.0f}" if fraction >= 0.1 else f"{fraction * 100:.2g}"


def points(fraction: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{fraction * 100:+.1f}".replace("-", "\N{MINUS SIGN}")


def per_class(ipc: int | str) -> str:
    if isinstance(ipc, str) and ipc != "all":  # of tuples, in words
        return ipc
    return "whole training split" if ipc == "all" else f"{ipc} image{'s' if ipc != 1 else ''} per class"
