"""Which folders of a tree lie in which, and how many images they hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from src.sources.trees import natural


@dataclass(frozen=True)
class Nest:
    """Paths of folders; "" is the top."""

    children: Mapping[str, list[str]]  # the folders that lie directly in one, in natural order
    images: Mapping[str, int]  # how many lie in one, however deep
    direct: frozenset[str]  # folders that images lie directly in

    def filled(self, folder: str) -> list[str]:
        """The folders directly in this one that hold images."""
        return [child for child in self.children.get(folder, ()) if self.images.get(child)]

    def names(self, folder: str) -> frozenset[str]:
        """The names of the folders directly in this one that hold images."""
        return frozenset(name_of(child) for child in self.filled(folder))


def nest(images: Iterable[str], folders: Iterable[str]) -> Nest:
    children: dict[str, list[str]] = defaultdict(list)
    for folder in sorted(folders, key=natural):
        children[above(folder)].append(folder)
    direct = Counter(above(path) for path in images)
    counts: Counter[str] = Counter()
    for folder, count in direct.items():
        for one in (folder, *ancestors(folder)):
            counts[one] += count
    return Nest(children, counts, frozenset(direct))


def above(path: str) -> str:
    return path.rpartition("/")[0]


def ancestors(path: str) -> Iterator[str]:
    """The folders that a path lies in, the nearest first, "" last."""
    while path:
        path = above(path)
        yield path


def name_of(path: str) -> str:
    return path.rpartition("/")[2]
