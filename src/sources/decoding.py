"""The images of a split -> one array, all of one shape: a look at every header first, then every image once.

Images are decoded straight into their place, so that besides the array only a batch of encoded files is ever held.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.process import progress
from src.process.progress import Advance
from src.sources import images
from src.sources.images import BrokenImageError, Header, Shape
from src.sources.raw import Bytes, Encoded, Labels, Plain, RawSplit

BATCH = 256  # encoded images held at once
SHOWN = 2000  # from so many images on progress is shown
THREADED_PIXELS = 96 * 96  # of a mean image; smaller ones take longer to hand over than to decode

Places = NDArray[np.int64]
Content = tuple[int, bytes | str]  # place in the split; encoded image, or why its bytes can't be had
Mapper = Callable[[Callable[[Content], tuple[int, Bytes | str]], list[Content]], Iterable[tuple[int, Bytes | str]]]


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
    with _shown(f"{title}, headers", len(value.names)) as advance, images.quiet():
        for place, stream in value.streams():
            try:
                headers[place] = images.header(stream, value.names[place])
            except BrokenImageError as error:
                broken[place] = str(error)
            advance()
    return Survey(headers, broken)


def decode(value: RawSplit, found: Survey, shape: Shape, pixel_max: int, title: str) -> Decoded:
    """All images that can be read, as integers 0 to pixel_max."""
    order = np.argsort(value.labels, kind="stable")
    if isinstance(value, Plain):
        return Decoded(_reshaped(value.images, order, shape, pixel_max), value.labels[order], {})
    slots = np.argsort(order)  # of each place
    out = np.empty((len(order), shape.channels, shape.size, shape.size), np.uint8)
    broken = dict(found.broken)
    with images.quiet():
        for place, image in _decoded(value, found, shape, title):
            if isinstance(image, str):
                broken[place] = image
            else:
                out[slots[place]] = image.transpose(2, 0, 1)
    kept = sorted(set(range(len(order))) - {int(slots[place]) for place in broken})
    return Decoded(_compacted(out, kept), value.labels[order][kept], broken)


def _reshaped(array: Bytes, order: Places, shape: Shape, pixel_max: int) -> Bytes:
    """(N, H, W, C) -> (N, C, H, W) in the order and shape given; images that have this shape stay as they are."""
    if array.shape[1:] == (shape.size, shape.size, shape.channels):
        return np.ascontiguousarray(array[order].transpose(0, 3, 1, 2))
    out = np.empty((len(order), shape.channels, shape.size, shape.size), np.uint8)
    for slot, place in enumerate(order):
        image = array[place] if array.shape[-1] > 1 else array[place, :, :, 0]
        out[slot] = images.fit(Image.fromarray(np.ascontiguousarray(image)), shape).transpose(2, 0, 1)
    return np.minimum(out, pixel_max, out=out)  # interpolation overshoots


def _decoded(value: Encoded, found: Survey, shape: Shape, title: str) -> Iterator[tuple[int, Bytes | str]]:
    """Each image that has a header, by its place in the split: as integers (H, W, C), or why it can't be read."""

    def result(content: Content) -> tuple[int, Bytes | str]:
        place, encoded = content
        try:
            return place, encoded if isinstance(encoded, str) else images.decode(encoded, shape, value.names[place])
        except BrokenImageError as error:
            return place, str(error)

    with _shown(title, len(found.headers)) as advance, _mapping(found.headers.values()) as each:
        for batch in _batches(value, found.headers):
            for pair in each(result, batch):
                yield pair
                advance()


def _batches(value: Encoded, wanted: Container[int]) -> Iterator[list[Content]]:
    batch: list[Content] = []
    for place, stream in value.streams():
        if place in wanted:
            batch.append((place, _content(stream)))
        if len(batch) == BATCH:
            yield batch
            batch = []
    yield batch


def _content(stream: BinaryIO) -> bytes | str:
    try:
        return stream.read()
    except Exception as error:  # a member of an archive may be damaged in as many ways as an image
        return str(error) or type(error).__name__


def _compacted(array: Bytes, kept: list[int]) -> Bytes:
    """The images kept, moved together within the array, so that it is not held twice."""
    for slot, place in enumerate(kept):
        if slot != place:
            array[slot] = array[place]
    return array[: len(kept)]


@contextmanager
def _mapping(headers: Iterable[Header]) -> Iterator[Mapper]:
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
