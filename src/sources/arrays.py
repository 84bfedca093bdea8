"""NumPy's .npz: x_train and y_train, with x_val, y_val, x_test, y_test and classes where there are such; or x and y.

Other words for them are images and labels, before the split's name or behind it, as in MedMNIST's train_images. The splits may
be files of their own, train.npz and test.npz, or images and labels too, as k49-train-imgs.npz and k49-train-labels.npz are.
Images are uint8, (N, H, W) for grey, (N, H, W, C) or (N, C, H, W) with C of 1 or 3. Real numbers are refused, as nothing says
what they were scaled by. Objects are never loaded: they could run code.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.ground.errors import DataError
from src.sources.labels import Value, Values, classed
from src.sources.raw import SPLITS, Bytes, Plain, Raw
from src.sources.words import split_of_file, words_of

LABELS_OF = {"x": "y", "images": "labels", "image": "label", "imgs": "labels"}  # words for images, and for labels beside them
IMAGES_OF = {"y": "x", "labels": "images", "label": "image"}
NAMES = ("classes", "class_names", "label_names")  # of the labels 0, 1, ...
UNNAMED = "arr_0"  # NumPy's name of an array without one
CHANNELS = (1, 3)

Array = NDArray[Any]
Slot = tuple[str, bool]  # a split, and whether its images or its labels


@dataclass(frozen=True)
class Held:
    """An array of a file."""

    path: Path
    key: str
    array: Array

    @property
    def title(self) -> str:
        return f"{self.key} in {self.path}"


def read(paths: Sequence[Path]) -> Raw:
    """One file with all splits, or files whose names say which they hold. Raises DataError unless they hold such arrays."""
    found: dict[Slot, Held] = {}
    names: dict[Value, str] | None = None
    left: list[str] = []
    for path in paths:
        with _opened(path) as file:
            for key in file.files:
                slot = _slot(path, key, alone=len(paths) == 1)
                if key in NAMES:
                    own: dict[Value, str] = dict(enumerate(_names(Held(path, key, file[key]))))
                    if names not in (None, own):
                        raise DataError(f"{key} in {path} names classes otherwise than a file before it: write the same in all")
                    names = own
                elif slot is None:
                    left.append(f"{key} in {path}")
                elif slot in found:
                    raise DataError(f"{found[slot].title} and {key} in {path} are for the same split: leave one of them out")
                else:
                    found[slot] = Held(path, key, file[key])
    return _raw(" and ".join(map(str, paths)), found, names, left)


def _slot(path: Path, key: str, alone: bool) -> Slot | None:
    """What an array holds, by its name; what that leaves open is said by the name of the file among others."""
    words = [] if key == UNNAMED else words_of(key)
    others = words_of(path.stem) if not alone else []
    split = split_of_file(key)
    kinds = [word in LABELS_OF for word in words if word in LABELS_OF or word in IMAGES_OF]
    if not words:
        kinds = [word in LABELS_OF for word in others if word in LABELS_OF or word in IMAGES_OF]
    if len(kinds) != 1 or len(words) > 1 + (split is not None):
        return None
    return split or (None if alone else split_of_file(path.stem)) or "train", kinds[0]


def _raw(title: str, found: Mapping[Slot, Held], names: Mapping[Value, str] | None, left: Sequence[str]) -> Raw:
    for (split, are_images), held in found.items():
        if (split, not are_images) not in found:
            other = [(LABELS_OF if are_images else IMAGES_OF).get(word, word) for word in held.key.split("_")]
            raise DataError(f"{title} holds {held.key} without {'_'.join(other)}: save both")
    if ("train", True) not in found:
        holds = ", ".join([*(held.key for held in found.values()), *left]) or "nothing"
        wanted = "x_train and y_train, x and y, or images and labels"
        raise DataError(f"{title} holds {holds}: save the training split as one of {wanted}")
    splits = [split for split in SPLITS if (split, True) in found]
    images = {split: _images(found[split, True]) for split in splits}
    values = {split: _values(found[split, False]) for split in splits}
    if len({type(value[0]) for value in values.values() if value} | ({int} if names else set())) > 1:
        raise DataError(f"{title} holds labels as texts beside numbers or the names of numbers: save all in one way")
    known = classed(values, names)
    notes = (*known.notes, *((f"left out, as no words for images or labels: {', '.join(left)}",) if left else ()))
    return Raw(known.classes, {s: Plain(images[s], known.labels[s]) for s in splits}, notes=notes)


def _images(held: Held) -> Bytes:
    """As (N, H, W, C)."""
    if held.array.dtype != np.uint8:
        remedy = "save uint8, for pixels in [0, 1] as (255 * x).round().astype('uint8')"
        raise DataError(f"{held.title} has the type {held.array.dtype}, but images are integers of 0 to 255: {remedy}")
    images = held.array.astype(np.uint8, copy=False)
    if images.ndim == 3:
        return images[..., None]
    last, second = (images.ndim == 4 and images.shape[axis] in CHANNELS for axis in (-1, 1))
    if last == second:
        why = "could be (N, H, W, C) as well as (N, C, H, W)" if last else "is none of (N, H, W), (N, H, W, C), (N, C, H, W)"
        raise DataError(f"{held.title} has the shape {images.shape}, which {why}: save (N, H, W, C) with 1 or 3 channels")
    return images if last else images.transpose(0, 2, 3, 1)


def _values(held: Held) -> Values:
    """Whole numbers, also where their type is real, or texts: (N,), also from (N, 1)."""
    array = held.array
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim == 1 and flat.dtype.kind in "SU":
        try:
            return [str(text) for text in (np.char.decode(flat, "utf-8") if flat.dtype.kind == "S" else flat)]
        except UnicodeDecodeError as error:
            raise DataError(f"{held.title} holds bytes that are not UTF-8 ({error}): save its labels as text") from None
    whole = flat.dtype.kind in "biu" or (flat.dtype.kind == "f" and bool((np.isfinite(flat) & (flat == np.round(flat))).all()))
    if flat.ndim != 1 or not whole:
        text = f"{held.title} has the shape {array.shape} and type {array.dtype}, but labels are one integer or text an image"
        remedy = (
            "save class numbers of shape (N,), of one-hot rows their argmax; images of several classes at once can't be used"
        )
        raise DataError(f"{text}: {remedy}")
    return [int(number) for number in flat.tolist()]


def _names(held: Held) -> tuple[str, ...]:
    array = held.array
    if array.ndim != 1 or array.dtype.kind != "U":
        raise DataError(f"{held.title} has the shape {array.shape} and type {array.dtype}: save an array of K texts")
    return tuple(str(name) for name in array)


@contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Turns what NumPy raises on damage, or on objects, into DataError."""
    try:
        with zipfile.ZipFile(path):  # which NumPy does not insist on
            pass
        with np.load(path, allow_pickle=False) as file:
            yield file
    # RuntimeError: damage may look like a kind of compression or like encryption; MemoryError: like a huge array
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError) as error:
        if "allow_pickle" in str(error):
            remedy = "save plain arrays of numbers, and classes as an array of texts"
            raise DataError(f"{path} holds Python objects, which are not loaded as they could run code: {remedy}") from None
        raise DataError(f"{path} is damaged or no .npz file ({error}): save it again with numpy.savez") from None
