"""Reading a source whole: find its form, look at its images, bring them to one shape and to one order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from src.ground.counting import counted
from src.ground.errors import DataError
from src.settings.datasets import Dataset
from src.sources import decoding, named, raw, sentences
from src.sources.decoding import Decoded, Survey
from src.sources.images import Shape
from src.sources.raw import SPLITS, Raw, RawSplit
from src.sources.sentences import shown
from src.store.values import Split


@dataclass(frozen=True)
class Source:
    """A data set, by class and within a class in the source's own order, so that no form of storing it changes a byte."""

    classes: tuple[str, ...]
    pixel_max: int
    splits: Mapping[str, Split]  # train always; val and test where the source has them; labels ascend
    names: Mapping[str, Callable[[int], str]]  # split -> what the image at a place in it is called
    broken: Mapping[str, str]  # images that were left out, as they can't be read -> why
    left_out: Mapping[str, str]  # files that are no images of the data set -> why
    notes: tuple[str, ...]  # sentences: what was found and decided

    @property
    def skipped(self) -> tuple[str, ...]:
        return tuple(self.broken)

    def sha256(self) -> str:
        """Digest of classes, splits, shapes, images and labels."""
        shapes = {split: list(value.images.shape) for split, value in self.splits.items()}
        digest = hashlib.sha256(json.dumps({"classes": self.classes, "shapes": shapes}, sort_keys=True).encode())
        for _, value in sorted(self.splits.items()):
            digest.update(value.images.numpy().data)
            digest.update(value.labels.numpy().data)
        return digest.hexdigest()


def read(settings: Dataset, name: str) -> Source:
    """The source of the data set `name` of the section prepare, downloaded where it must be.

    Raises DataError where the source is missing, broken, not what its sha256 says, or not of one shape.
    """
    with naming(name):
        found = named.read(settings)
        raw.check(found)
        surveys = surveyed(found, name)
        source = decoded(found, surveys, settings, name)
    if settings.sha256 is not None and settings.sha256 != source.sha256():
        text = f"prepare.{name}: the source {settings.path or settings.source} has the sha256 {source.sha256()}"
        raise DataError(f"{text}, not prepare.{name}.sha256: restore its images, or change the setting")
    return source


def surveyed(found: Raw, name: str) -> Mapping[str, Survey]:
    """The headers of all splits, train first."""
    return {split: decoding.survey(found.splits[split], f"{name} {split}") for split in SPLITS if split in found.splits}


def decoded(found: Raw, surveys: Mapping[str, Survey], settings: Dataset, name: str) -> Source:
    """Raises DataError where images are broken, unless the settings skip these, or differ in size."""
    shape = Shape(channels_of(surveys, settings), size_of(found, surveys, settings, name))
    splits = {
        split: decoding.decode(found.splits[split], survey, shape, found.pixel_max, f"{name} {split}")
        for split, survey in surveys.items()
    }
    broken = broken_of(found, splits)
    if broken and not settings.skip_broken:
        raise DataError(_sentence(broken, name))
    _check_left(found, splits)
    tensors = {split: Split(torch.from_numpy(v.images), torch.from_numpy(v.labels)) for split, v in splits.items()}
    names = {split: _names(split, found.splits[split], value.broken) for split, value in splits.items()}
    return Source(found.classes, found.pixel_max, tensors, names, broken, found.left_out, found.notes)


def _names(split: str, value: RawSplit, broken: Container[int]) -> Callable[[int], str]:
    """What images are called, by class as `decode` orders them."""
    kept = [place for place in np.argsort(value.labels, kind="stable").tolist() if place not in broken]
    return lambda place: decoding.name_of(split, value, kept[place])


def _check_left(found: Raw, splits: Mapping[str, Decoded]) -> None:
    """What is left without the broken images must still be a data set."""
    train = found.splits["train"].labels
    lost = np.setdiff1d(train, splits["train"].labels)
    if len(lost):
        broken = _named(found, splits, "train", np.flatnonzero(train == lost[0]))
        text = f"no training image of the class '{found.classes[lost[0]]}' can be read, {sentences.broken(broken)}"
        raise DataError(f"{text}: repair them, or leave the class out")
    for split, value in splits.items():
        if not len(value.labels):
            broken = _named(found, splits, split, value.broken)
            text = f"no image of the {split} split can be read, {sentences.broken(broken)}"
            raise DataError(f"{text}: repair its images, or remove it")


def _named(found: Raw, splits: Mapping[str, Survey | Decoded], split: str, places: Iterable[int]) -> dict[str, str]:
    """Names of broken images, and why they can't be read, by their places in the split."""
    return {decoding.name_of(split, found.splits[split], int(place)): splits[split].broken[int(place)] for place in places}


def _sentence(broken: Mapping[str, str], name: str) -> str:
    remedy = f"repair or remove them, or leave them out with prepare.{name}.skip_broken: true"
    return f"{counted(len(broken), 'image')} can't be read, {sentences.broken(broken)}: {remedy}"


def broken_of(found: Raw, splits: Mapping[str, Survey | Decoded]) -> Mapping[str, str]:
    """The name of each broken image, and why it can't be read."""
    return {
        name: why for split, value in splits.items() for name, why in _named(found, splits, split, sorted(value.broken)).items()
    }


def channels_of(surveys: Mapping[str, Survey], settings: Dataset) -> int:
    """As the settings say, else 1 where every image is grey, else 3."""
    grey = all(header.grey for survey in surveys.values() for header in survey.headers.values())
    return settings.channels or (1 if grey else 3)


def size_of(found: Raw, surveys: Mapping[str, Survey], settings: Dataset, name: str) -> int:
    """Side of the square images, pixels. Raises DataError where it is not set, and the images have no common one."""
    if settings.size is not None:
        return settings.size
    first: tuple[int, int] | None = None
    for split, survey in surveys.items():
        for place in sorted(survey.headers):
            width, height = survey.headers[place].width, survey.headers[place].height
            first = first or (width, height)
            if width != height or (width, height) != first:
                odd = decoding.name_of(split, found.splits[split], place)
                rule = "is not square" if width != height else f"differs from the first image's {first[0]}x{first[1]}"
                raise DataError(f"{odd} has {width}x{height} pixels, which {rule}: set prepare.{name}.size to resize all")
    return first[0] if first else 1


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Puts the place in params.yaml before the sentences of errors; what the file system refuses becomes a sentence."""
    try:
        yield
    except DataError as error:
        raise DataError(f"prepare.{name}: {shown(str(error))}") from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = shown(f"{where}{error.strerror or error}")
        raise DataError(f"prepare.{name}: the source can't be read ({reason}): permit reading it, or repair it") from None
