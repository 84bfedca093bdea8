"""Image files without what only describes them: text, profiles, thumbnails. Pillow refuses whole images for damage there."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
SOS = 0xDA  # the marker after which a JPEG's pixels follow
EXIF = b"Exif\0\0"


def without(content: bytes) -> bytes | None:
    """The file with pixels, colours and orientation alone; None where it is none of PNG, JPEG and AVIF."""
    if content.startswith(PNG):
        return PNG + b"".join(chunk for chunk in _chunks(content) if _is_kept(chunk))
    if content.startswith(JPEG):
        return JPEG + b"".join(_segments(content))
    if content[4:12] in (b"ftypavif", b"ftypavis", b"ftypmif1"):
        head, *rest = content.partition(b"mdat")
        return b"".join((head.replace(b"Exif", b"free"), *rest))  # an item of a kind that decoders pass over
    return None


def _chunks(content: bytes) -> Iterator[bytes]:
    """Each chunk of a PNG, whole, with its length and checksum; the last one as far as it is there."""
    place = len(PNG)
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        yield content[place:end]
        place = end


def _is_kept(chunk: bytes) -> bool:
    kind, body, check = chunk[4:8], chunk[4:-4], chunk[-4:]
    return kind in PNG_KEPT or (kind == b"eXIf" and zlib.crc32(body) == int.from_bytes(check, "big"))


def _segments(content: bytes) -> Iterator[bytes]:
    """The segments of a JPEG that its pixels need, and its orientation's; then all from its pixels on."""
    place = len(JPEG)
    while place + 4 <= len(content) and content[place + 1] != SOS:
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        marker, body = content[place + 1], content[place + 4 : end]
        describes = 0xE0 <= marker <= 0xEF or marker == 0xFE
        adobe = marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12  # says how the colours are stored
        if not describes or adobe or body.startswith(EXIF):
            yield content[place:end]
        place = end
    yield content[place:]
