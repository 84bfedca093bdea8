"""What a source holds, and what could go wrong with it: read as `prepare` reads it, but nothing is refused that can be told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from src.ground.errors import DataError
from src.settings.datasets import Dataset
from src.sources import named, raw, reading
from src.sources.decoding import Survey
from src.sources.raw import Raw
from src.sources.reading import Source

TRIAL_SIZE = 8  # of images without a common size, which are decoded only to see whether they can be
IMBALANCE = 10  # the largest class may have so many times the images of the smallest


@dataclass(frozen=True)
class Inspection:
    """A source's classes and images as they are stored."""

    counts: Mapping[str, Mapping[str, int]]  # split -> class -> images, broken ones too
    sizes: Counter[tuple[int, int]]  # (width, height) -> images
    channels: Counter[int]  # 1 for grey, 3 for colour -> images
    problems: tuple[str, ...]  # sentences
    sha256: str | None  # as prepare would find it without the broken images; None where they have no common size
    source: Source  # without the broken images; not as prepare would find it where they have no common size

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.counts["train"])


def inspect(settings: Dataset, name: str) -> Inspection:
    """Decode every image of the source. Raises DataError where the source can't be read at all."""
    lenient = settings.model_copy(update={"skip_broken": True, "sha256": None})
    with reading.naming(name):
        found = named.read(settings)
        raw.check(found)
        surveys = reading.surveyed(found, name)
        counts = _counts(found)
        problems = [*_imbalance(counts["train"]), *_absences(counts)]
        try:
            reading.size_of(found, surveys, settings, name)
        except DataError as error:
            problems.append(str(error))
            lenient = lenient.model_copy(update={"size": TRIAL_SIZE})
        source = reading.decoded(found, surveys, lenient, name)
    sha256 = source.sha256() if lenient.size == settings.size else None
    return Inspection(counts, _sizes(surveys), _channels(surveys), tuple(problems), sha256, source)


def _counts(found: Raw) -> Mapping[str, Mapping[str, int]]:
    numbers = {split: Counter(value.labels.tolist()) for split, value in found.splits.items()}
    return {split: {c: count[k] for k, c in enumerate(found.classes)} for split, count in numbers.items()}


def _sizes(surveys: Mapping[str, Survey]) -> Counter[tuple[int, int]]:
    return Counter((header.width, header.height) for survey in surveys.values() for header in survey.headers.values())


def _channels(surveys: Mapping[str, Survey]) -> Counter[int]:
    return Counter(1 if header.grey else 3 for survey in surveys.values() for header in survey.headers.values())


def _imbalance(counts: Mapping[str, int]) -> list[str]:
    most, least = max(counts, key=lambda c: counts[c]), min(counts, key=lambda c: counts[c])
    if counts[most] <= IMBALANCE * counts[least]:
        return []
    text = f"the class '{most}' has {counts[most]} training images and '{least}' has {counts[least]}"
    return [f"{text}, more than {IMBALANCE} to 1: add images to the small classes, or leave them out"]


def _absences(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Classes that a validation or test split has no image of."""
    lacking = {split: [c for c, count in value.items() if not count] for split, value in counts.items()}
    return [
        f"the {split} split has no image of '{names[0]}'{f' and {len(names) - 1} more classes' if names[1:] else ''}"
        for split, names in lacking.items()
        if names
    ]
