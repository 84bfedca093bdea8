"""What spoils what the splits measure: an image in two of them, or under two classes, a class that one of them lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from src.ground.counting import counted
from src.sources.parts import Part
from src.sources.reading import Source
from src.sources.sentences import first

SHOWN, SHOWN_CLASSES = 2, 5  # examples of a sentence
TITLES = {"train": "training", "val": "validation", "test": "test"}

Digests = NDArray[np.uint64]


def problems(source: Source, parts: Mapping[str, Part]) -> list[str]:
    """Sentences; images are the same where all their bytes are, once they are brought to the shape of all."""
    whole = {split: _digests(value.images.numpy()) for split, value in source.splits.items()}
    digests = {split: whole[part.split][part.places] for split, part in parts.items()}
    lines = [_shared(source, parts, digests, one, other) for one, other in combinations(parts, 2)]
    lines += [_contradicted(source, parts["train"], digests["train"])]
    lines += [_lacking(source, split, part) for split, part in parts.items() if part.split != split]
    return [line for line in lines if line]


def _digests(images: NDArray[np.uint8]) -> Digests:
    """(N,) of 64 bits: that two of a million different images share one is less likely than one in ten million."""
    return np.frombuffer(b"".join(blake2b(image.data, digest_size=8).digest() for image in images), np.uint64)


def _shared(source: Source, parts: Mapping[str, Part], digests: Mapping[str, Digests], one: str, other: str) -> str:
    """Images of the split `other` that the split `one` has too."""
    places = np.flatnonzero(np.isin(digests[other], digests[one])).tolist()
    if not places:
        return ""
    twins = [int(np.argmax(digests[one] == digests[other][place])) for place in places[: SHOWN + 1]]
    pairs = [(parts[other].name(source, a), parts[one].name(source, b)) for a, b in zip(places, twins, strict=False)]
    text = f"{_stand(len(places), 'image', f' of the {TITLES[other]} split')} in the {TITLES[one]} split too"
    return f"{text}, byte for byte: {_examples(pairs)}"


def _contradicted(source: Source, train: Part, digests: Digests) -> str:
    """Training images that stand under several classes."""
    labels = source.splits["train"].labels.numpy()[train.places]
    order = np.lexsort((labels, digests))
    found, of = digests[order], labels[order]
    seams = np.flatnonzero((found[1:] == found[:-1]) & (of[1:] != of[:-1])).tolist()
    if not seams:
        return ""
    pairs = [(train.name(source, int(order[one])), train.name(source, int(order[one + 1]))) for one in seams[: SHOWN + 1]]
    text = f"{_stand(len(np.unique(found[seams])), 'training image')} under more than one class"
    return f"{text}, byte for byte: {_examples(pairs)}"


def _lacking(source: Source, split: str, part: Part) -> str:
    """A split that was cut off with no image of a small class."""
    counts = np.bincount(source.splits["train"].labels.numpy()[part.places], minlength=len(source.classes))
    names = [name for name, count in zip(source.classes, counts, strict=True) if not count]
    return f"the {TITLES[split]} split has no image of {first(names, SHOWN_CLASSES)}, as the class is small" if names else ""


def _stand(count: int, noun: str, which: str = "") -> str:
    return f"{counted(count, noun)}{which} {'stands' if count == 1 else 'stand'}"


def _examples(pairs: Sequence[tuple[str, str]]) -> str:
    return first([f"{one} and {other}" for one, other in pairs], SHOWN)
