"""One image file -> integers 0 to 255 of the wanted channels and size.

Transparent pixels are laid on white; 16-bit grey levels are divided by 257, so that 65535 becomes 255; all other modes are
converted as Pillow does. Only formats that Pillow decodes by itself are opened: none that calls another program.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import (
    ExifTags,
    Image,
    ImageOps,
    TiffImagePlugin,  # noqa: F401, else the first TIFF or WebP file makes Pillow import all its formats
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from src.io.sources.raw import Bytes

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
GREY_MODES = frozenset({"1", "L", "LA", "La"})
DEEP_GREY_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})


class BrokenImageError(Exception):
    """The bytes are no image that can be read; the reason fits into a sentence."""


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


def header(stream: BinaryIO) -> Header:
    """Read no more than it takes to know mode and size. Raises BrokenImageError."""
    with _broken():
        image = _open(stream)
    return Header(*image.size, grey=image.mode in GREY_MODES | DEEP_GREY_MODES)


def decode(content: bytes, shape: Shape) -> Bytes:
    """The whole image, upright, as integers (size, size, channels). Raises BrokenImageError."""
    with _broken():
        image: Image.Image = _open(io.BytesIO(content))
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        return fit(_eight_bit(image), shape)


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


def _open(stream: BinaryIO) -> Image.Image:
    return Image.open(stream, formats=FORMATS)


@contextmanager
def _broken() -> Iterator[None]:
    """Turns whatever Pillow raises on damaged bytes, which is nearly any kind of error, into BrokenImageError."""
    try:
        yield
    except BrokenImageError:
        raise
    except UnidentifiedImageError:
        raise BrokenImageError("no image of a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"{Image.MAX_IMAGE_PIXELS:,}" if Image.MAX_IMAGE_PIXELS else ""
        raise BrokenImageError(f"more pixels than the {limit} that guard against decompression bombs") from None
    except Exception as error:
        raise BrokenImageError(str(error) or type(error).__name__) from None
