"""The images of a split -> one array, all of one shape: a look at every header first, then every image once.

Images are decoded straight into their place, so that besides the array only a batch of encoded files is ever held.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from src.io import progress
from src.io.progress import Advance
from src.io.sources import images
from src.io.sources.images import BrokenImageError, Header
from src.io.sources.raw import Bytes, Encoded, Labels, Plain, RawSplit

BATCH = 256  # encoded images held at once
SHOWN = 2000  # from so many images on progress is shown
THREADED_PIXELS = 64 * 64  # of a mean image; smaller ones take longer to hand over than to decode

Content = tuple[int, bytes]  # place in the split, encoded image


@dataclass(frozen=True)
class Survey:
    """What the headers of a split's images say, by their place in it."""

    headers: Mapping[int, Header]
    broken: Mapping[int, str]  # why the others can't be read


@dataclass(frozen=True)
class Decoded:
    """The images of a split that can be read, by class, each class in the source's own order."""

    images: Bytes  # (N, C, H, W)
    labels: Labels  # (N,)
    broken: Mapping[int, str]  # place in the split -> why it can't be read


def name_of(split: str, value: RawSplit, place: int) -> str:
    """What error sentences call an image."""
    return value.names[place] if isinstance(value, Encoded) else f"image {place} of the {split} split"


def survey(value: RawSplit, title: str) -> Survey:
    """Look at all headers; `title` is what the progress is of."""
    if isinstance(value, Plain):
        count, height, width, channels = value.images.shape
        return Survey(dict.fromkeys(range(count), Header(width, height, channels == 1)), {})
    headers: dict[int, Header] = {}
    broken: dict[int, str] = {}
    with _shown(f"{title}, headers", len(value.names)) as advance, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for place, stream in value.streams():
            try:
                headers[place] = images.header(stream)
            except BrokenImageError as error:
                broken[place] = str(error)
            advance()
    return Survey(headers, broken)


def decode(value: RawSplit, found: Survey, channels: int, size: int, pixel_max: int, title: str) -> Decoded:
    """All images that can be read, as integers 0 to pixel_max of (channels, size, size)."""
    order = np.argsort(value.labels, kind="stable")
    if isinstance(value, Plain):
        return Decoded(_reshaped(value.images, order, channels, size, pixel_max), value.labels[order], {})
    slots = np.empty_like(order)
    slots[order] = np.arange(len(order))
    out = np.empty((len(order), channels, size, size), np.uint8)
    broken = dict(found.broken)

    def place_one(content: Content) -> None:
        place, encoded = content
        try:
            out[slots[place]] = images.decode(encoded, channels, size).transpose(2, 0, 1)
        except BrokenImageError as error:
            broken[place] = str(error)

    with _shown(title, len(order)) as advance, _mapping(found.headers.values()) as each:
        for batch in _batches(value, broken, advance):
            for _ in each(place_one, batch):
                pass
    kept = sorted(set(range(len(order))) - {int(slots[place]) for place in broken})
    return Decoded(_compacted(out, kept), value.labels[order][kept], broken)


def _reshaped(array: Bytes, order: Labels, channels: int, size: int, pixel_max: int) -> Bytes:
    """(N, H, W, C) -> (N, channels, size, size) in the order given; images that have that shape stay as they are."""
    if array.shape[1:] == (size, size, channels):
        return np.ascontiguousarray(array[order].transpose(0, 3, 1, 2))
    out = np.empty((len(order), channels, size, size), np.uint8)
    for slot, place in enumerate(order):
        image = array[place] if array.shape[-1] > 1 else array[place, :, :, 0]
        fitted = images.fit(Image.fromarray(np.ascontiguousarray(image)), channels, size)
        out[slot] = fitted.transpose(2, 0, 1)
    return np.minimum(out, pixel_max, out=out)  # interpolation overshoots


def _batches(value: Encoded, broken: dict[int, str], advance: Advance) -> Iterator[list[Content]]:
    """Encoded images, without those that are known to be broken; adds those whose bytes can't be had."""
    batch: list[Content] = []
    for place, stream in value.streams():
        advance()
        if place in broken:
            continue
        try:
            batch.append((place, stream.read()))
        except Exception as error:  # a member of an archive may be damaged in as many ways as an image
            broken[place] = str(error)
        if len(batch) == BATCH:
            yield batch
            batch = []
    yield batch


def _compacted(array: Bytes, kept: list[int]) -> Bytes:
    """The images kept, moved together within the array, so that it is not held twice."""
    for slot, place in enumerate(kept):
        if slot != place:
            array[slot] = array[place]
    return array[: len(kept)]


@contextmanager
def _mapping(headers: Iterable[Header]) -> Iterator[Callable[[Callable[[Content], None], list[Content]], Iterable[None]]]:
    """A map over the images of a batch: in threads, which decoders let run side by side, or one after the other."""
    pixels = [header.width * header.height for header in headers]
    if not pixels or np.mean(pixels) < THREADED_PIXELS:
        yield map
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield pool.map


@contextmanager
def _shown(title: str, total: int) -> Iterator[Advance]:
    if total < SHOWN:
        yield lambda note="": None
    else:
        with progress.progress(title, total) as advance:
            yield advance
