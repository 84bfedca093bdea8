"""Which files of a tree are images, to be read or to be named as broken, and why each of the others is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from src.sources import formats
from src.sources.trees import Tree, natural

BY_NAME, BY_CONTENT = "no image by name", "no image of a known format"


@dataclass(frozen=True)
class Contents:
    """Paths below the tree's top."""

    images: tuple[str, ...]  # in natural order
    folders: frozenset[str]
    left_out: dict[str, str]  # every other file -> why, in natural order


def of(tree: Tree) -> Contents:
    """Raises DataError where the tree can't be read."""
    listing = tree.listing()
    kinds = {path: formats.by_name(path) for path in listing.files}
    doubtful = [path for path, kind in kinds.items() if kind is None]
    left_out = {path: BY_NAME for path, kind in kinds.items() if kind is False}
    for path, stream in tree.streams(doubtful, formats.HEAD) if doubtful else ():
        kinds[path] = _looks_like_image(stream)
        if not kinds[path]:
            left_out[path] = BY_CONTENT
    left_out |= listing.left_out
    images = sorted((path for path, kind in kinds.items() if kind), key=natural)
    return Contents(tuple(images), listing.folders, {path: left_out[path] for path in sorted(left_out, key=natural)})


def _looks_like_image(stream: BinaryIO) -> bool:
    try:
        return formats.by_content(stream.read(formats.HEAD))
    except Exception:  # a member of an archive may be damaged in as many ways as an image
        return False
