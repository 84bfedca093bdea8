"""What the names of folders, files and arrays say of a split; case, numbers and what separates words don't matter."""

from __future__ import annotations

import re

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
FILLERS = ("seg", "image", "images", "img", "imgs", "pictures", "photos", "set", "data", "dataset", "split", "folder")
JOINED = {  # trainset, imgtest
    joined: split
    for word, split in SPLIT_WORDS.items()
    for joined in (word, *(f"{word}{filler}" for filler in FILLERS), *(f"{filler}{word}" for filler in FILLERS))
}


def words_of(name: str) -> list[str]:
    """The words and numbers of a name, in small letters: TrainImages2017 has three."""
    spaced = re.sub("(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"\d+(?:x\d+)?|[^\W\d_]+", spaced.casefold())


def telling(name: str) -> list[str]:
    """The words that may mean something: TrainImages2017 has one."""
    return [word for word in words_of(name) if word not in FILLERS and not word[0].isdecimal()]


def split_of_folder(name: str) -> str | None:
    """The split that the name is a usual one of; None where it says anything else, as a class of test tubes does."""
    found = [JOINED.get(word) for word in telling(name)]
    return found[0] if len(found) == 1 else None


def split_of_file(name: str) -> str | None:
    """The split that one of the words stands for, whatever the others say; None where none does, or they differ."""
    found = {JOINED[word] for word in words_of(name) if word in JOINED}
    return found.pop() if len(found) == 1 else None
