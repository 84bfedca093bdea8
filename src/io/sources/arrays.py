"""NumPy's .npz: x_train and y_train, with x_val, y_val, x_test, y_test and classes where there are such; or x and y.

Images are uint8, (N, H, W) for grey, (N, H, W, C) or (N, C, H, W) with C of 1 or 3. Real numbers are refused, as nothing says
what they were scaled by. Objects are never loaded: they could run code.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.ground.errors import DataError
from src.io.sources.raw import Bytes, Labels, Plain, Raw, numbered

PAIRS = (
    ("train", "x_train", "y_train"), ("train", "x", "y"), ("train", "images", "labels"),
    ("val", "x_val", "y_val"), ("test", "x_test", "y_test"),
)  # fmt: skip
CHANNELS = (1, 3)


def read(path: Path) -> Raw:
    """Raises DataError unless the file is sound and holds such arrays."""
    keys = {"classes", *(key for _, *pair in PAIRS for key in pair)}
    try:
        with zipfile.ZipFile(path):  # which NumPy does not insist on
            pass
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key in keys}
            return _raw(path, arrays, file.files)
    # RuntimeError: damage may look like a kind of compression or like encryption; MemoryError: like a huge array
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError) as error:
        if "allow_pickle" in str(error):
            remedy = "save plain arrays of numbers, and classes as an array of texts"
            raise DataError(f"{path} holds Python objects, which are not loaded as they could run code: {remedy}") from None
        raise DataError(f"{path} is damaged or no .npz file ({error}): save it again with numpy.savez") from None


def _raw(path: Path, arrays: Mapping[str, NDArray[np.generic]], keys: Iterable[str]) -> Raw:
    found = [pair for pair in PAIRS if pair[1] in arrays]
    if [split for split, *_ in found].count("train") != 1:
        wanted = "x_train and y_train, x and y, or images and labels"
        raise DataError(f"{path} holds {', '.join(keys) or 'nothing'}: save the training split as one of {wanted}")
    for _, images, labels in found:
        if labels not in arrays:
            raise DataError(f"{path} holds {images} without {labels}: save both")
    splits = {
        split: Plain(_images(f"{images} in {path}", arrays[images]), _labels(f"{labels} in {path}", arrays[labels]))
        for split, images, labels in found
    }
    numbers = {split: value.labels for split, value in splits.items()}
    return Raw(_classes(path, arrays["classes"]) if "classes" in arrays else numbered(numbers), splits)


def _images(name: str, array: NDArray[np.generic]) -> Bytes:
    """As (N, H, W, C)."""
    if array.dtype != np.uint8:
        remedy = "save uint8, for pixels in [0, 1] as (255 * x).round().astype('uint8')"
        raise DataError(f"{name} has the type {array.dtype}, but images are integers of 0 to 255: {remedy}")
    images = array.astype(np.uint8, copy=False)
    if images.ndim == 3:
        return images[..., None]
    last, second = (images.ndim == 4 and images.shape[axis] in CHANNELS for axis in (-1, 1))
    if last == second:
        why = "could be (N, H, W, C) as well as (N, C, H, W)" if last else "is none of (N, H, W), (N, H, W, C), (N, C, H, W)"
        raise DataError(f"{name} has the shape {images.shape}, which {why}: save (N, H, W, C) with 1 or 3 channels")
    return images if last else images.transpose(0, 2, 3, 1)


def _labels(name: str, array: NDArray[np.generic]) -> Labels:
    """Integers (N,), also from (N, 1)."""
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or not np.issubdtype(flat.dtype, np.integer):
        text = f"{name} has the shape {array.shape} and type {array.dtype}, but labels are one integer an image"
        raise DataError(f"{text}: save class numbers of shape (N,)")
    return flat.astype(np.int64)


def _classes(path: Path, array: NDArray[np.generic]) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind != "U":
        raise DataError(f"classes in {path} has the shape {array.shape} and type {array.dtype}: save an array of K texts")
    return tuple(str(name) for name in array)
