"""What the names of files, folders and arrays say of a split."""

from __future__ import annotations

import re

from src.io.sources.layouts import SPLITS


def words_of(name: str) -> list[str]:
    """The words and numbers of a name, in small letters."""
    return re.findall(r"[^\W_]+", name.casefold())


def split_of(name: str) -> str | None:
    """The split that one of the words stands for; None where none does, or several do."""
    found = {SPLITS[word] for word in words_of(name) if word in SPLITS}
    return found.pop() if len(found) == 1 else None
