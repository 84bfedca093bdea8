"""Known sources of tuples: scikit-learn's digits with their names in many languages, and with recordings of spoken digits."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.ground.counting import counted
from src.ground.errors import DataError
from src.maths import splitting
from src.settings.datasets import Dataset
from src.sources import downloads, named, sentences
from src.sources.raw import Plain
from src.sources.tuples import names
from src.sources.tuples.raw import RawItems, RawTuples, paired

KNOWN: Mapping[str, Mapping[str, str]] = {
    "digits-seen-written": {"image": "image", "text": "text"},
    "digits-seen-written-spoken": {"image": "image", "text": "text", "sound": "audio"},
}  # name -> modalities and their kinds
SPLITS = ("train", "val", "test")
FSDD = "fsdd"
RECORDING = re.compile(r"([0-9])_([^_]+)_([0-9]+)\.wav")
TEST_TAKES = 5  # takes 0 to 4 of each speaker and digit are the test split, as the authors of FSDD have it
DIGITS = tuple(str(digit) for digit in range(10))
NAMED = 3  # recordings that a sentence names

Places = NDArray[np.int64]
Cut = tuple[RawItems, Mapping[str, Places]]  # all items of a modality, and those of each split


def read(settings: Dataset, state: int) -> RawTuples:
    """The known source of the settings, split and paired by draws of `state`. Raises DataError."""
    found = {"image": _seen(settings, state), "text": _written()}
    told: list[bool] = []
    if is_recorded(settings):
        paths = recordings(_folder(settings))
        told = [_order(path)[2] < TEST_TAKES for path in paths]
        found["sound"] = _spoken(paths, np.array(told), settings, state)
    draws = np.random.default_rng(state)
    splits = {}
    for split in SPLITS:
        places = [cut[split] for _, cut in found.values()]
        groups = [np.array(items.groups)[own] for (items, _), own in zip(found.values(), places, strict=True)]
        rows = paired(groups, draws)
        splits[split] = np.stack([own[column] for own, column in zip(places, rows.T, strict=True)], axis=1)
    return RawTuples({name: items for name, (items, _) in found.items()}, splits, told, pixel_max=16)


def is_recorded(settings: Dataset) -> bool:
    """Whether recordings, which lie in a folder, are of the source."""
    return "sound" in KNOWN[settings.source]


def _seen(settings: Dataset, state: int) -> Cut:
    (raw,) = named.read_digits().splits.values()
    assert isinstance(raw, Plain)
    labels = raw.labels
    cut = splitting.split(
        labels, DIGITS, {"val": settings.val_fraction, "test": settings.test_fraction}, settings.train_images, state
    )
    return RawItems(list(raw.images), labels.tolist()), cut


def _written() -> Cut:
    """The same in all splits: what is new in the others are pictures and voices."""
    words = names.by_digit()
    own = RawItems([word for same in words for word in same], [digit for digit, same in enumerate(words) for _ in same])
    return own, dict.fromkeys(SPLITS, np.arange(len(own.values)))


def _spoken(paths: Sequence[Path], tests: NDArray[np.bool_], settings: Dataset, state: int) -> Cut:
    """Recordings by digit; those that are no test takes of the authors are cut into training and validation split."""
    labels, rest = np.array([_order(path)[0] for path in paths]), np.flatnonzero(~tests)
    cut = splitting.split(labels[rest], DIGITS, {"val": settings.val_fraction}, None, state)
    own = RawItems([path.read_bytes() for path in paths], labels.tolist(), [str(path) for path in paths])
    return own, {**{split: rest[cut[split]] for split in ("train", "val")}, "test": np.flatnonzero(tests)}


def recordings(folder: Path) -> list[Path]:
    """All of FSDD below a folder, by digit, speaker and take, of which every digit has the same. Raises DataError."""
    found: dict[tuple[int, str, int], Path] = {}
    for path in sorted(folder.rglob("*.wav")):
        if RECORDING.fullmatch(path.name) and path.is_file() and (first := found.setdefault(_order(path), path)) != path:
            raise DataError(f"{path} is the recording that {first} is: remove one of them")
    digits = {path.name[0] for path in found.values()}
    if digits != set(DIGITS):
        text = f"{folder} holds no recordings of the digits {', '.join(sorted(set(DIGITS) - digits))}"
        raise DataError(f"{text}: it needs files as FSDD calls them, DIGIT_SPEAKER_TAKE.wav")
    _, speakers, takes = (sorted(set(part)) for part in zip(*found, strict=True))
    lacking = [key for key in product(range(len(DIGITS)), speakers, takes) if key not in found]
    if lacking:
        names = sentences.first(["{}_{}_{}.wav".format(*key) for key in lacking], NAMED)
        text = f"{folder} lacks {counted(len(lacking), 'recording')} of FSDD, {names}"
        raise DataError(f"{text}: put {'it' if len(lacking) == 1 else 'them'} there, or download all of FSDD again")
    return [found[key] for key in sorted(found)]


def _order(path: Path) -> tuple[int, str, int]:
    """Digit, speaker, take."""
    match = RECORDING.fullmatch(path.name)
    assert match is not None
    return int(match[1]), match[2], int(match[3])


def _folder(settings: Dataset) -> Path:
    """Where FSDD lies: as the settings say, among the sources, or downloaded to them."""
    if settings.path is not None:
        folder = Path(settings.path).expanduser()
        if not folder.is_dir():
            raise DataError(f"the path {folder} is no folder: name the one that holds FSDD's recordings")
        return folder
    own = named.FOLDER / FSDD
    places = [own, *([Path(os.environ[named.VARIABLE]).expanduser() / FSDD] if os.environ.get(named.VARIABLE) else [])]
    for place in places:
        if place.is_dir() and any(place.rglob("*.wav")):
            return place
    try:
        downloads.fetch(FSDD, own)
    except DataError as error:
        told = f"put its recordings into {own}, or name their folder as prepare's path"
        raise DataError(f"{error}: {told}") from None
    return own
