"""Archives that hold a split each, such as train.zip and test.zip, as one tree with a folder for each split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from src.sources.trees import Listing, Tree


@dataclass(frozen=True)
class Joined:
    """Trees of class folders, by split."""

    folder: Path
    trees: Mapping[str, Tree]

    @property
    def title(self) -> str:
        return str(self.folder)

    def listing(self) -> Listing:
        files: list[str] = []
        folders = set(self.trees)
        left_out: dict[str, str] = {}
        for split, tree in self.trees.items():
            listing = tree.listing()
            files += [f"{split}/{path}" for path in listing.files]
            folders |= {f"{split}/{path}" for path in listing.folders}
            left_out |= {f"{split}/{path}": why for path, why in listing.left_out.items()}
        return Listing(tuple(files), frozenset(folders), left_out)

    def streams(self, files: Iterable[str], most: int = -1) -> Iterator[tuple[str, BinaryIO]]:
        wanted = list(files)
        for split, tree in self.trees.items():
            own = [path.removeprefix(f"{split}/") for path in wanted if path.startswith(f"{split}/")]
            for name, stream in tree.streams(own, most) if own else ():
                yield f"{split}/{name}", stream
