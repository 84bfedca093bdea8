"""Folders and archives made at random: `init` accepts what `prepare` can do and nothing else, and no file vanishes.

Classes have as many images as splits of them need, whatever is broken, so that what is tried here is the reading.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from src import cli
from src.editing import params_edit
from src.settings.params import load
from src.sources import inspection
from src.sources.words import split_of_folder
from tests import pictures
from tests.imports import ROOT
from tests.small_run import STORE

ROUNDS = 48
ENOUGH = 10  # images of a class, whole ones
CLASS_NAMES = ("cat", "dog", "emu", "train", "test", "images", "Unlabeled", "n01", "10", "9", "caf\udce9", "a b", "ünï", "CAT")
SPLIT_NAMES = (
    "train", "Training", "seg_train", "train_images", "test", "Testing", "val", "dev", "valid", "part_a", "part_b", "seg_pred",
)  # fmt: skip
KINDS = {
    "png": "PNG",
    "PNG": "PNG",
    "jpg": "JPEG",
    "jfif": "JPEG",
    "ppm": "PPM",
    "bmp": "BMP",
    "": "PNG",
    "new": "GIF",
    "tga": "TGA",
}
BROKEN = {"png": b"", "jpg": b"version https://git-lfs.github.com/spec/v1\n", "heic": b"x", "svg": b"<svg/>", "tif": b"II*\0"}
OTHERS = ("notes.txt", "a.csv", ".hidden", "Thumbs.db", "README", "@eaDir/0.png", "x.bin", "\udce9.json", ".cache/a/b.png")


def class_files(draw: random.Random, label: int, part: int) -> dict[str, bytes]:
    """Images of one class, broken ones and other files among them."""
    files = {}
    for number in range(ENOUGH + draw.randrange(3)):
        suffix = draw.choice([*KINDS, "png", "png"])
        below = draw.choice(["", "", "", "more/", "a/b/"])
        name = f"{below}{number}{'.' if suffix else ''}{suffix}"
        files[name] = pictures.file_of(pictures.coded(label, number, part), KINDS[suffix])
    for number in range(draw.choice([0, 0, 0, 1, 2])):
        suffix = draw.choice(list(BROKEN))
        files[f"broken{number}.{suffix}"] = BROKEN[suffix]
    return files | dict.fromkeys(draw.sample(OTHERS, draw.choice([0, 0, 1, 3])), b"text")


@dataclass(frozen=True)
class Made:
    """A folder of classes, of splits, or of both and something else."""

    files: Mapping[str, bytes]
    classes: list[str]  # by the label that the images say
    parts: list[str]  # by the folder that the images say


def made(draw: random.Random) -> Made:
    classes = draw.sample(CLASS_NAMES[: draw.choice([3, 3, 3, 3, len(CLASS_NAMES)])], draw.choice([2, 2, 3, 3, 1]))
    several = draw.sample(SPLIT_NAMES, draw.choice([1, 2, 2, 3]))
    parts = draw.choice([[""], [""], several, several, ["train", "test"], ["trn", "DevSet", "tst"]])
    top = draw.choice(["", "", "archive/", "a/a/"])
    files: dict[str, bytes] = {}
    for part, folder in enumerate(parts):
        inner = draw.choice([folder, folder, f"{folder}/{folder}"]).strip("/")
        for label, name in enumerate(classes):
            if part == 0 or draw.random() < 0.9:
                below = f"{top}{inner}/{name}".replace("//", "/").strip("/")
                files |= {f"{below}/{path}": content for path, content in class_files(draw, label, part).items()}
    if draw.random() < 0.2:
        extra = draw.choice(["seg_pred/1.png", "test/1.png", "stray.png", "extra/1.png", "docs/readme.md", "fox/notes.txt"])
        files[f"{top}{extra}"] = pictures.file_of(pictures.coded(0, 31))
    files |= dict.fromkeys((f"{top}{name}" for name in draw.sample(OTHERS, draw.choice([0, 1, 2]))), b"text")
    return Made(files, classes, parts)


def outcome(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    monkeypatch.setattr(sys, "argv", ["src.cli", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0), capsys.readouterr().err


def assert_sentence(error: str) -> None:
    lines = error.strip().splitlines()
    assert lines[-1].startswith("Error: ")
    assert all(line.startswith("problem: ") for line in lines[:-1])
    assert lines[-1].isprintable()


def assert_whole(given: Made) -> None:
    """Every file is an image that was prepared, or named as broken or left out; labels and splits are as the images say."""
    statistics, found = STORE.load_statistics("made"), inspection.inspect(load().prepare["made"], "made").source
    counted = 0
    for split in ("train", "val", "test"):
        value = STORE.load_split("made", split)
        counted += len(value.labels)
        for label, (own, _, part) in zip(value.labels.tolist(), pictures.codes_of(value), strict=True):
            name, said = statistics.classes[label], split_of_folder(given.parts[part])
            assert name in (given.classes[own], given.parts[part])
            assert name == given.parts[part] or said in (None, "train", split)
    named = [*statistics.skipped, *found.left_out]
    assert counted + len(named) == len(given.files)
    assert all(name.isprintable() for name in named)
    assert statistics.skipped == tuple(found.broken)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_init_accepts_what_prepare_can_do(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    draw = random.Random(seed)
    given = made(draw)
    write = draw.choice([pictures.write_folder, pictures.write_folder, pictures.write_tar])
    source = str(write(Path("images.tar"), given.files))
    skip, none = draw.random() < 0.85, draw.random() < 0.1
    words = ["--data", source, "--name", "made", "--size", "8", *["--skip-broken"] * skip, *["--splits", "none"] * none]
    before = Path("params.yaml").read_bytes()
    code, error = outcome(["init", *words], monkeypatch, capsys)
    if code:
        assert_sentence(error)
        assert Path("params.yaml").read_bytes() == before
        by_hand = {"source": source, "size": 8, "skip_broken": skip, **({"splits": "none"} if none else {})}
        params_edit.add({"prepare": {"made": by_hand}})
    assert outcome(["prepare", "--dataset", "made"], monkeypatch, capsys)[0] == code
    if not code:
        assert_whole(given)
