"""The one rule of splits: the draws that it always made, what small classes allow, what it says, and images in two splits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from src.ground.errors import DataError, UserError
from src.maths.splitting import split
from src.settings import resolved
from src.settings.params import Params, load
from src.sources import flaws, reading
from src.sources.parts import divided
from src.stages import init, prepare, records
from tests import pictures
from tests.imports import ROOT
from tests.small_run import STORE

BOTH = {"test": 0.2, "val": 0.2}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with nothing but params.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def labels_of(*counts: int) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(counts)), counts)


def counted(labels: NDArray[np.int64], places: NDArray[np.int64]) -> list[int]:
    return np.bincount(labels[places], minlength=int(labels.max()) + 1).tolist()


def names_of(labels: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(f"kind {k}" for k in range(int(labels.max()) + 1))


@pytest.mark.parametrize("cut", [BOTH, {"test": 0.3, "val": 0.1}, {"val": 0.1}, {"test": 0.25}, {}])
@pytest.mark.parametrize("keep", [None, 40])
@pytest.mark.parametrize("counts", [(30, 30, 30), (11, 57, 23, 19), (180, 182, 177, 183, 181, 182, 181, 179, 174, 180)])
def test_draws_are_those_of_stratified_cuts_one_after_the_other(
    counts: tuple[int, ...], keep: int | None, cut: dict[str, float]
) -> None:
    labels = labels_of(*counts)
    train, rest, expected = np.arange(len(labels)), 1.0, {}
    for name in [name for name in ("test", "val") if name in cut]:
        train, there = train_test_split(train, test_size=cut[name] / rest, stratify=labels[train], random_state=7)
        train, expected[name], rest = np.sort(train), np.sort(there), rest - cut[name]
    if keep is not None:
        train = np.sort(train_test_split(train, test_size=len(train) - keep, stratify=labels[train], random_state=7)[0])
    found = split(labels, names_of(labels), cut, keep, 7)
    assert {name: places.tolist() for name, places in found.items()} == {
        name: places.tolist() for name, places in {"train": train, **expected}.items()
    }


def test_the_splits_of_digits_are_what_they_were() -> None:
    params = load()
    source = reading.read(params.prepare["digits"], "digits")
    parts = divided(source, params.prepare["digits"], "digits", params.seed)
    sums = {name: (len(part.places), int(part.places @ np.arange(len(part.places)))) for name, part in parts.items()}
    assert sums == {"train": (1077, 693903578), "val": (360, 77554155), "test": (360, 77351034)}
    assert flaws.problems(source, parts) == []


@pytest.mark.parametrize(
    ("counts", "train", "val", "test"),
    [
        ((4,) * 8, [2] * 8, [1] * 8, [1] * 8),
        ((3, 3), [1, 1], [1, 1], [1, 1]),
        ((20, 20, 20, 3), [12, 12, 12, 1], [4, 4, 4, 1], [4, 4, 4, 1]),
    ],
)
def test_small_classes_are_in_every_split(counts: tuple[int, ...], train: list[int], val: list[int], test: list[int]) -> None:
    labels = labels_of(*counts)
    found = split(labels, names_of(labels), BOTH, None, 1)
    assert {name: counted(labels, places) for name, places in found.items()} == {"train": train, "val": val, "test": test}
    assert sorted(np.concatenate(list(found.values())).tolist()) == list(range(len(labels)))


@pytest.mark.parametrize(
    ("counts", "cut", "keep", "sentence"),
    [
        (
            (20, 20, 20, 2), BOTH, None,
            "the class 'kind 3' has 2 images, 1 of which other splits take: too few for a validation split of 20 % and for "
            "training, which take 1 each: add images of it, or leave the class out",
        ),
        (
            (20, 1), {"val": 0.1}, None,
            "the class 'kind 1' has 1 image: too few for a validation split of 10 % and for training, which take 1 each: "
            "add images of it, or leave the class out",
        ),
        (
            (1,) * 36, BOTH, None,
            "each of the 36 classes has 1 image, so that a test split of 20 % can't be cut off: add images, or name classes by "
            "labels that several images share",
        ),
        ((5, 5), {"val": 0.9}, None, "a validation split of 90 % leaves 1 of 10 images for 2 classes: add images"),
        ((20, 20), {}, 40, "train_images: 40 of 40 training images is not within 2 and 38"),
        ((20, 20), {}, 1, "train_images: 1 of 40 training images is not within 2 and 38"),
        ((1000, 10), {}, 20, "the class 'kind 1' is so small that it keeps no training image"),
        (
            (20, 1), {}, 10,
            "the class 'kind 1' has 1 image: too few for the 11 images that train_images leaves out and for training",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_split_is_said_of_images_and_classes(
    counts: tuple[int, ...], cut: dict[str, float], keep: int | None, sentence: str
) -> None:
    labels = labels_of(*counts)
    with pytest.raises(DataError) as caught:
        split(labels, names_of(labels), cut, keep, 1)
    assert str(caught.value).startswith(sentence)


def coded(label: int, number: int, size: int = 8) -> bytes:
    image = np.zeros((size, size, 3), np.uint8)
    image[:, :, 0], image[:, :, 1] = label, number
    return pictures.png(image)


def write(counts: dict[str, int], broken: dict[str, int] | None = None, top: str = "images") -> Path:
    """Images coloured by class and number, the first ones of each class broken."""
    files = {
        f"{top}/{name}/{n}.png": b"no image" if n < (broken or {}).get(name, 0) else coded(label, n)
        for label, (name, count) in enumerate(counts.items())
        for n in range(count)
    }
    return pictures.write_folder(Path(), files) / top


def with_run(name: str, ipc: int, **settings: object) -> Params:
    """The data set in params.yaml as by hand, with a run of so many images per class."""
    params = load()
    run = params.runs["digits-ipc1-ast"].model_copy(update={"dataset": name, "ipc": ipc})
    distillations = {f"{name}-run": params.distillations["digits-ipc1-ast"]}
    prepared = {name: pictures.dataset(**settings)}  # type: ignore[arg-type]
    return replace(params, prepare=prepared, runs={f"{name}-run": run}, distillations=distillations)


@pytest.mark.parametrize(
    ("counts", "broken", "ipc", "words"),
    [
        (dict.fromkeys("abcdefgh", 4), {}, 2, None),
        (dict.fromkeys("abcdefgh", 4), {}, 3, "the class 'a' keeps 2 of its 4 images for training, fewer than 3"),
        ({"a": 20, "b": 20, "c": 20, "few": 2}, {}, 1, "the class 'few' has 2 images"),
        ({"a": 10, "b": 10}, {"b": 8}, 5, "'b' keeps 1 of its 2 images that can be read for training, fewer than 5"),
        ({"a": 10, "b": 10}, {"b": 6}, 5, "'b' keeps 2 of its 4 images that can be read for training, fewer than 5"),
        ({"a": 10, "b": 10}, {"b": 6}, 2, None),
    ],
)
def test_init_and_prepare_count_by_one_rule(
    counts: dict[str, int], broken: dict[str, int], ipc: int, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(counts, broken)
    settings = {"source": "images", "size": 8, "skip_broken": bool(broken)}
    if words is None:
        init.run("images", "mine", 8, ipc, skip_broken=bool(broken))
        prepare.run(STORE, resolved.data_set(load(), "mine"))
        train = STORE.load_split("mine", "train")
        assert train.images[:, 0, 0, 0].tolist() == train.labels.tolist()
        found = {s: STORE.load_split("mine", s).images[:, :2, 0, 0].tolist() for s in ("train", "val", "test")}
        seen = sorted(tuple(pixel) for pixels in found.values() for pixel in pixels)
        assert seen == [(k, n) for k, (c, count) in enumerate(counts.items()) for n in range(broken.get(c, 0), count)]
        return
    before = Path("params.yaml").read_bytes()
    with pytest.raises(DataError, match=words):
        init.run("images", "mine", 8, ipc, skip_broken=bool(broken))
    assert Path("params.yaml").read_bytes() == before
    with pytest.raises(DataError, match=r"^prepare\.mine: the class|^runs\.mine-run\.ipc"):
        prepare.run(STORE, resolved.data_set(with_run("mine", ipc, **settings), "mine"))
    assert not Path("data/prepare").exists()


def test_images_changed_under_an_older_run(monkeypatch: pytest.MonkeyPatch) -> None:
    write({"a": 10, "b": 10})
    init.run("images", "mine", 8, 5)
    Path("images/b/0.png").unlink()
    Path("images/b/1.png").unlink()
    with pytest.raises(DataError, match=r"runs\.mine-ipc5-ast\.ipc: ipc 5 exceeds the smallest class, 'b', with 4"):
        init.run("images", "mine", 8, 1, update=True)


def test_the_label_column_is_asked_for_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(label, n) for n in range(6) for label in range(3)]
    made = {"image": [coded(label, n) for label, n in rows], "kind": [f"k{label}" for label, _ in rows]}
    pq.write_table(pa.table({**made, "fold": [n for _, n in rows]}), "made.parquet")
    with pytest.raises(DataError, match="in each of the columns kind, fold: name one with --label-column"):
        init.run("made.parquet", "mine", 8, 1)
    init.run("made.parquet", "mine", 8, 1, label_column="kind")
    assert load().prepare["mine"].label_column == "kind"
    init.run("made.parquet", "mine", 8, 2)
    with pytest.raises(UserError, match=r"prepare\.mine with label_column kind: set prepare\.mine\.label_column: fold there"):
        init.run("made.parquet", "mine", 8, 2, label_column="fold")
    prepare.run(STORE, resolved.data_set(load(), "mine"))
    train = STORE.load_split("mine", "train")
    assert train.images[:, 0, 0, 0].tolist() == train.labels.tolist()
    recorded = {
        name: records.prepared_record(resolved.data_set(load(), name), "").settings["prepare"] for name in ("mine", "digits")
    }
    assert recorded["mine"]["label_column"] == "kind"
    assert "label_column" not in recorded["digits"]


def test_images_in_two_splits_are_counted_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    for split_name in ("train", "val", "test"):
        write({"a": 6, "b": 6}, top=f"images/{split_name}")
    for split_name, number in (("val", 10), ("test", 20)):
        for name in "ab":
            for n in range(6):
                path = Path(f"images/{split_name}/{name}/{n}.png")
                path.write_bytes(coded("ab".index(name), n + number))
    for place, (label, n) in enumerate([(0, 1), (0, 4), (1, 5)]):
        Path(f"images/test/{'ab'[label]}/{place}.png").write_bytes(coded(label, n))
    Path("images/val/b/3.png").write_bytes(coded(1, 2))
    Path("images/train/b/0.png").write_bytes(coded(0, 0))
    lines = (
        "3 images of the test split stand in the training split too, byte for byte: "
        "test/a/0.png and train/a/1.png, test/a/1.png and train/a/4.png, ...",
        "1 image of the validation split stands in the training split too, byte for byte: val/b/3.png and train/b/2.png",
        "1 training image stands under more than one class, byte for byte: train/a/0.png and train/b/0.png",
    )
    init.run("images", "mine", 8, 1)
    shown = capsys.readouterr().err
    assert all(f"problem: {line}" in shown for line in lines)
    assert shown.count("byte for byte") == 3
    prepare.run(STORE, resolved.data_set(load(), "mine"))
    shown = capsys.readouterr().err
    assert all(f"mine: warning: {line}" in shown for line in lines)


def test_an_image_that_is_in_a_class_twice_may_be_cut_apart(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"a": 10, "b": 10}
    write(counts)
    init.run("images", "whole", 8, 1)
    assert "byte for byte" not in capsys.readouterr().err
    files = {f"images/{name}/{n + 10}.png": coded(k, n) for k, name in enumerate(counts) for n in range(10)}
    pictures.write_folder(Path(), files)
    init.run("images", "twice", 8, 1)
    prepare.run(STORE, resolved.data_set(load(), "twice"))
    splits = {s: STORE.load_split("twice", s).images[:, :2, 0, 0].tolist() for s in ("train", "test")}
    both = sum(pixel in splits["train"] for pixel in splits["test"])
    assert both > 0
    line = f"{both} image{'s' if both > 1 else ''} of the test split stand{'' if both > 1 else 's'} in the training split too"
    assert capsys.readouterr().err.count(line) == 2


def test_a_split_that_lacks_a_small_class_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    write({"a": 10, "few": 2})
    init.run("images", "mine", 8, 1)
    assert "problem: the test split has no image of few, as the class is small" in capsys.readouterr().err
