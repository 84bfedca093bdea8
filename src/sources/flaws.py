"""What spoils what the splits measure: an image in two of them, or under two classes, a class that one of them lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import combinations
from typing import Any

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
    whole = {split: digests_of(value.images.numpy()) for split, value in source.splits.items()}
    digests = {split: whole[part.split][part.places] for split, part in parts.items()}
    lines = [*shared("image", digests, lambda split, place: parts[split].name(source, place))]
    lines += [_contradicted(source, parts["train"], digests["train"])]
    lines += [_lacking(source, split, part) for split, part in parts.items() if part.split != split]
    return [line for line in lines if line]


def digests_of(items: Iterable[Any]) -> Digests:
    """(N,) of 64 bits: that two of a million different items share one is less likely than one in ten million."""
    return np.frombuffer(b"".join(blake2b(memoryview(item), digest_size=8).digest() for item in items), np.uint64)


def shared(noun: str, digests: Mapping[str, Digests], name: Callable[[str, int], str]) -> Iterator[str]:
    """Sentences on items that a split shares with one before it; `name` is what the one at a place of a split is called."""
    for one, other in combinations(digests, 2):
        places = np.flatnonzero(np.isin(digests[other], digests[one])).tolist()
        if places:
            twins = [int(np.argmax(digests[one] == digests[other][place])) for place in places[: SHOWN + 1]]
            pairs = [(name(other, a), name(one, b)) for a, b in zip(places, twins, strict=False)]
            text = f"{_stand(len(places), noun, f' of the {TITLES[other]} split')} in the {TITLES[one]} split too"
            yield f"{text}, byte for byte: {_examples(pairs)}"


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
    return first([one if one == other else f"{one} and {other}" for one, other in pairs], SHOWN)
