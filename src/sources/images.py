"""One image file -> integers 0 to 255 of the wanted channels and size.

Transparent pixels are laid on white; 16-bit grey levels are divided by 257, so that 65535 becomes 255; all other modes are
converted as Pillow does. Of several frames or pages the first is taken. Damage to what only describes an image is passed over.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from src.sources import formats, metadata
from src.sources.raw import Bytes

GREY_MODES = frozenset({"1", "L", "LA", "La"})
DEEP_GREY_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
TURNS = {  # EXIF's orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints what Pillow logs

Result = TypeVar("Result")


class BrokenImageError(Exception):
    """The bytes are no image that can be read; the reason fits into a sentence."""


class Absent(io.BytesIO):
    """Takes the place of an image that is not there, and says why when it is read."""

    def __init__(self, reason: str):
        super().__init__()
        self.reason = reason

    def read(self, size: int | None = -1, /) -> bytes:
        raise BrokenImageError(self.reason)


@dataclass(frozen=True)
class Header:
    """What an image file says before it is decoded."""

    width: int
    height: int
    grey: bool


@dataclass(frozen=True)
class Shape:
    """What all images are brought to: 1 channel or 3, a square of `size` pixels."""

    channels: int
    size: int


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Pillow's warnings off the screen; of the one of decompression bombs it makes an error. Holds for all threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def header(stream: BinaryIO, name: str = "") -> Header:
    """Read no more than it takes to know mode and size; the name of the file may tell its format. Raises BrokenImageError."""
    with _broken(stream, name):
        try:
            image = _open(stream, name)
        except (*BOMBS, BrokenImageError):
            raise
        except Exception:
            stream.seek(0)
            image = _salvaged(lambda content: _open(io.BytesIO(content), name), stream.read())
    return Header(*image.size, grey=image.mode in GREY_MODES | DEEP_GREY_MODES)


def decode(content: bytes, shape: Shape, name: str = "") -> Bytes:
    """The whole image, upright, as integers (size, size, channels). Raises BrokenImageError."""
    with _broken(io.BytesIO(content), name):
        return fit(_eight_bit(_salvaged(lambda data: _upright(data, name), content)), shape)


def fit(image: Image.Image, shape: Shape) -> Bytes:
    """An image of mode L or RGB as integers (size, size, channels): luma for grey, centre cut for a square."""
    mode = "L" if shape.channels == 1 else "RGB"
    square = _square(image if image.mode == mode else image.convert(mode), shape.size)
    return np.asarray(square).reshape(shape.size, shape.size, shape.channels)


def _square(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size` by antialiased bicubic interpolation, then the centre; untouched where it has that size."""
    shorter = min(image.size)
    if shorter != size:
        width, height = (max(size, round(side * size / shorter)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in image.size)
    return image if image.size == (size, size) else image.crop((left, top, left + size, top + size))


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode in DEEP_GREY_MODES:
        return _from_16_bits(image)
    if image.mode == "F":
        raise BrokenImageError("its grey levels are real numbers")
    mode = "L" if image.mode in GREY_MODES else "RGB"
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        return paper.convert(mode)
    return image if image.mode == mode else image.convert(mode)


def _from_16_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise BrokenImageError("its grey levels exceed 16 bits")
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))


def _upright(content: bytes, name: str) -> Image.Image:
    image = _open(io.BytesIO(content), name)
    image.load()
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """What EXIF or XMP say, where they can be understood."""
    try:
        return int(image.getexif()[ExifTags.Base.Orientation])
    except Exception:  # nearly any kind, as on damaged bytes everywhere
        return 1


def _salvaged(read: Callable[[bytes], Result], content: bytes) -> Result:
    """What is read of the file, or else of the file without its metadata, whose damage does the pixels no harm."""
    try:
        return read(content)
    except BOMBS:
        raise
    except Exception:
        bare = metadata.without(content)
        try:
            if bare is not None:
                return read(bare)
        except Exception:  # what was wrong with the file as it is says more
            pass
        raise


def _open(stream: BinaryIO, name: str) -> Image.Image:
    return Image.open(stream, formats=formats.to_try(name))


@contextmanager
def _broken(stream: BinaryIO, name: str) -> Iterator[None]:
    """Turns whatever Pillow raises on damaged bytes, which is nearly any kind of error, into BrokenImageError."""
    try:
        yield
    except BrokenImageError:
        raise
    except UnidentifiedImageError:
        raise BrokenImageError(formats.reason(_head(stream), name)) from None
    except BOMBS:
        limit = f"{Image.MAX_IMAGE_PIXELS:,}" if Image.MAX_IMAGE_PIXELS else ""
        raise BrokenImageError(f"more pixels than the {limit} that guard against decompression bombs") from None
    except Exception as error:
        raise BrokenImageError(str(error) or type(error).__name__) from None


def _head(stream: BinaryIO) -> bytes:
    try:
        stream.seek(0)
        return stream.read(formats.HEAD)
    except Exception:  # a member of an archive may be damaged behind the bytes that were read
        return b"?"
