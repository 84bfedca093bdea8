"""A synthetic set as a folder of images, with a folder for each class: their pixels as they are, nothing is resized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.ground.errors import ArtifactError
from src.maths.networks import ImageShape
from src.sources import contents, images
from src.sources.images import BrokenImageError, Shape
from src.sources.trees import Folder, natural

NAMES_SAID = 3  # so many names a sentence gives as examples


def read(path: Path, shape: ImageShape, class_names: Sequence[str]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Integers 0 to 255 (S, C, H, W) in uint8, classes (S,), and what was decided or left out.

    Raises ArtifactError where classes or sizes are others, or an image can't be read.
    """
    found = contents.of(Folder(path))
    of_class = _by_folder(path, found.images)
    classes, note = _classes(path, sorted(of_class, key=natural), shape.classes, class_names)
    left = [f"left out of {path}: {', '.join(list(found.left_out)[:NAMES_SAID])}"] if found.left_out else []
    names = [name for folder in classes for name in of_class[folder]]
    labels = torch.tensor([classes[folder] for folder in classes for _ in of_class[folder]], dtype=torch.int64)
    with images.quiet():
        pixels = torch.stack([_image(path / name, shape) for name in names])
    return pixels, labels, (note, *left)


def _by_folder(path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Images by the folder at the top that they lie in."""
    found: dict[str, list[str]] = {}
    for name in names:
        folder, _, rest = name.partition("/")
        if not rest:
            raise ArtifactError(f"{path / name} lies in no folder of a class: give a folder with a folder for each class")
        found.setdefault(folder, []).append(name)
    return found


def _classes(path: Path, folders: list[str], count: int, names: Sequence[str]) -> tuple[Mapping[str, int], str]:
    """The class of each folder, in order of the classes, and how it was found: by name, by number, or by natural order."""
    known = {folder: names.index(folder) for folder in folders if folder in names}
    if folders and len(known) == len(folders):
        return _ordered(known), "folders are classes by their names"
    if known:
        other = next(folder for folder in folders if folder not in known)
        raise ArtifactError(f"{path / other} is no class of the data set, which has {_some(names)}: rename the folder")
    numbers = {folder: int(folder) for folder in folders if folder.isascii() and folder.isdigit()}
    if folders and len(numbers) == len(folders) == len(set(numbers.values())) and max(numbers.values()) < count:
        return _ordered(numbers), "folders are classes by their numbers"
    if len(folders) != count:
        held = f"{path} holds {len(folders)} folders with images ({_some(folders)})"
        raise ArtifactError(f"{held}, but there are {count} classes: name the folders by class, or by number from 0")
    return {folder: index for index, folder in enumerate(folders)}, f"folders are classes in the order {_some(folders)}"


def _ordered(classes: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(classes.items(), key=lambda item: item[1]))


def _image(path: Path, shape: ImageShape) -> Tensor:
    """(C, H, W) in uint8."""
    try:
        with path.open("rb") as stream:
            header = images.header(stream, path.name)
        if (header.width, header.height) != (shape.size, shape.size):
            sides = f"{header.width}x{header.height} pixels, where the data set has {shape.size}x{shape.size}"
            raise ArtifactError(f"{path} has {sides}: distilled images are not resized, so give those of this size")
        if shape.channels == 1 and not header.grey:  # the other way nothing is lost
            raise ArtifactError(f"{path} is in colour, where the data set is grey: save it in shades of grey")
        array = images.decode(path.read_bytes(), Shape(shape.channels, shape.size), path.name)
    except OSError as error:
        raise ArtifactError(f"{path} can't be read ({error.strerror or error}): permit reading it, or remove it") from None
    except BrokenImageError as error:
        raise ArtifactError(f"{path} can't be read as an image ({error}): make it again, or remove it") from None
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:NAMES_SAID], *(["..."] if len(names) > NAMES_SAID else [])]) or "none"
