"""Words for what a source holds besides the images that are taken: names as they can be printed, counts, first examples."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

from src.ground.counting import counted

NAMED_BROKEN = 5  # of the broken images a sentence names so many
NAMED_LEFT_OUT = 3  # of the files left out for one reason
UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, bytes that are no UTF-8, ends of lines


def shown(name: str) -> str:
    """The name with bytes that are no UTF-8, as Python keeps them in file names, and control characters escaped."""
    if name.isprintable():
        return name
    return "".join(_escaped(char) if unicodedata.category(char) in UNPRINTABLE else char for char in name)


def _escaped(char: str) -> str:
    byte = ord(char) - 0xDC00  # of a byte that is no UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else char.encode("unicode_escape").decode()


def first(names: Iterable[str], most: int) -> str:
    names = list(names)
    return ", ".join([*names[:most], "..."] if len(names) > most else names)


def broken(reasons: Mapping[str, str]) -> str:
    """The first broken images, each with why it can't be read."""
    return first([f"{name} ({reason})" for name, reason in reasons.items()], NAMED_BROKEN)


def left_out(reasons: Mapping[str, str]) -> list[str]:
    """One line for each reason: how many files, and the first of them."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return [f"{counted(len(names), 'file')} ({reason}): {first(names, NAMED_LEFT_OUT)}" for reason, names in groups.items()]


def of_source(notes: Iterable[str], files: Mapping[str, str], images: Mapping[str, str]) -> list[str]:
    """All there is to say of a source: what was decided, which `files` were left out, and which `images` are broken."""
    skipped = [f"left out: {counted(len(images), 'image')} that can't be read, {broken(images)}"] if images else []
    return [*notes, *(f"left out: {line}" for line in left_out(files)), *skipped]
