"""Sources of real images: every form of storing them gives the same bytes, in one order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from src.ground.errors import DataError
from src.sources import reading
from src.sources.reading import Source
from src.sources.trees import natural
from tests import pictures
from tests.pictures import CLASSES, dataset

FORMS: dict[str, Callable[[Path, pictures.Splits], Path]] = {
    "folder": lambda path, made: pictures.write_folder(path / "images", pictures.members(made)),
    "npz": lambda path, made: pictures.write_npz(path / "made.npz", made),
    "zip": lambda path, made: pictures.write_zip(path / "made.zip", pictures.members(made)),
    "zip with a top folder": lambda path, made: pictures.write_zip(
        path / "made.ZIP", {f"top/{name}": content for name, content in pictures.members(made).items()}
    ),
    "tar": lambda path, made: pictures.write_tar(path / "made.tar", pictures.members(made)),
    "tar.gz": lambda path, made: pictures.write_tar(path / "made.tar.gz", pictures.members(made)),
    "tgz": lambda path, made: pictures.write_tar(path / "made.tgz", pictures.members(made)),
    "parquet": lambda path, made: pictures.write_parquet(path / "hub", made),
}


def same(one: Source, other: Source) -> bool:
    pairs = [(one.splits[split], other.splits[split]) for split in one.splits]
    return one.classes == other.classes and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs
    )


def read(path: Path | str, **settings: object) -> Source:
    return reading.read(dataset(path, **settings), "mine")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_bytes(form: str, tmp_path: Path) -> None:
    made = pictures.splits()
    found = read(FORMS[form](tmp_path, made))
    assert (found.classes, found.pixel_max, found.skipped) == (CLASSES, 255, ())
    assert list(found.splits) == ["train", "val", "test"]
    for split, (images, labels) in made.items():
        order = np.argsort(labels, kind="stable")
        assert found.splits[split].labels.tolist() == labels[order].tolist()
        assert np.array_equal(found.splits[split].images.numpy(), images[order].transpose(0, 3, 1, 2))
    assert same(found, read(FORMS["npz"](tmp_path, made)))
    assert found.sha256() == read(FORMS["npz"](tmp_path, made)).sha256()


@pytest.mark.parametrize("form", ["folder", "npz", "tar.gz", "parquet"])
def test_resizing_and_grey_do_not_depend_on_the_form(form: str, tmp_path: Path) -> None:
    made = pictures.splits(size=9)
    settings = {"size": 5, "channels": 1}
    found = read(FORMS[form](tmp_path, made), **settings)
    assert found.splits["train"].images.shape == (36, 1, 5, 5)
    assert same(found, read(FORMS["zip"](tmp_path, made), **settings))


def test_the_digest_follows_pixels_labels_classes_and_splits(tmp_path: Path) -> None:
    made = pictures.splits()
    digests = {read(pictures.write_npz(tmp_path / "one.npz", made)).sha256() for _ in range(2)}
    assert len(digests) == 1
    images, labels = made["test"]
    darker = images.copy()
    darker[0, 0, 0, 0] ^= 1
    swapped = labels.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    for changed in ({**made, "test": (darker, labels)}, {**made, "test": (images, swapped)}, pictures.splits(names=("train",))):
        digests.add(read(pictures.write_npz(tmp_path / "other.npz", changed)).sha256())
    files = {name.replace("emu", "fox"): content for name, content in pictures.members(made).items()}
    digests.add(read(pictures.write_folder(tmp_path / "foxes", files)).sha256())
    assert len(digests) == 5


def test_the_digest_in_the_settings_must_be_the_sources(tmp_path: Path) -> None:
    path = pictures.write_npz(tmp_path / "made.npz", pictures.splits())
    digest = read(path).sha256()
    assert read(path, sha256=digest).sha256() == digest
    with pytest.raises(DataError, match=rf"^prepare\.mine: .*{digest}, not prepare\.mine\.sha256"):
        read(path, sha256="0" * 64)


def test_names_sort_by_the_numbers_in_them() -> None:
    names = ["b2.png", "b10.png", "a/2.png", "a/10.png", "007", "7", "a", "10", "B1"]
    assert sorted(names, key=natural) == ["007", "7", "10", "B1", "a", "a/2.png", "a/10.png", "b2.png", "b10.png"]


def test_class_folders_alone_are_training_images(tmp_path: Path) -> None:
    train = pictures.splits(names=("train",))
    files = {name.removeprefix("train/"): content for name, content in pictures.members(train).items()}
    found = read(pictures.write_folder(tmp_path, files))
    assert list(found.splits) == ["train"]
    assert torch.equal(found.splits["train"].images, read(FORMS["npz"](tmp_path.parent, train)).splits["train"].images)


def test_litter_other_files_and_nested_folders_do_not_matter(tmp_path: Path) -> None:
    made = pictures.splits(names=("train", "val"))
    plain = read(FORMS["npz"](tmp_path, made))
    files = {name.replace("train/", "Train/").replace("val/", "validation/"): c for name, c in pictures.members(made).items()}
    files = {name.replace("cat/1", "cat/1/1"): content for name, content in files.items()}
    files |= {".DS_Store": b"x", "Train/Thumbs.db": b"x", "Train/cat/.hidden.png": b"x", "Train/cat/notes.txt": b"x"}
    files |= {"__MACOSX/Train/._cat.png": b"x", "docs/readme.md": b"x"}
    found = read(pictures.write_zip(tmp_path / "made.zip", files))
    assert found.classes == CLASSES
    assert torch.equal(found.splits["val"].images, plain.splits["val"].images)
    assert torch.equal(found.splits["train"].images[12:], plain.splits["train"].images[12:])
    order = [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]  # cat/0.png, cat/1/1.png, cat/1/10.png, cat/1/11.png, cat/2.png, ...
    assert torch.equal(found.splits["train"].images[:12], plain.splits["train"].images[order])


def test_images_in_an_array_may_come_in_several_shapes(tmp_path: Path) -> None:
    images, labels = pictures.splits(names=("train",))["train"]
    expected = read(pictures.write_npz(tmp_path / "made.npz", {"train": (images, labels)})).splits["train"].images
    np.savez(tmp_path / "first.npz", x=images.transpose(0, 3, 1, 2), y=labels[:, None].astype(np.uint8))
    np.savez(tmp_path / "grey.npz", images=images[..., 0], labels=labels.astype(np.int32))
    first, grey = read(tmp_path / "first.npz"), read(tmp_path / "grey.npz")
    assert torch.equal(first.splits["train"].images, expected)
    assert torch.equal(grey.splits["train"].images, expected[:, :1])
    assert first.classes == ("0", "1", "2")


def test_parquet_without_names_and_with_plain_bytes(tmp_path: Path) -> None:
    images, labels = pictures.splits(names=("train",))["train"]
    made = pictures.table(images, labels, classes=None)
    plain = {"img": made.column("image").combine_chunks().field("bytes"), "kind": made.column("label")}
    pq.write_table(type(made).from_pydict(plain), tmp_path / "made.parquet")
    found = read(tmp_path / "made.parquet")
    assert found.classes == ("0", "1", "2")
    assert torch.equal(
        found.splits["train"].images, read(FORMS["npz"](tmp_path, {"train": (images, labels)})).splits["train"].images
    )
