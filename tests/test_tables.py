"""Labels and splits of tables and arrays: which column, which numbers or texts, which file; pixels encode class and number."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from src.ground.errors import DataError
from src.sources import forms, reading
from src.sources.contents import BY_NAME
from src.sources.reading import Source
from src.sources.trees import HIDDEN
from tests import pictures
from tests.pictures import dataset

COUNTS = {"train": 6, "val": 2, "test": 3}  # images of each class
NAMES = ("cat", "dog", "emu")


def read(path: Path, **settings: object) -> Source:
    return reading.read(dataset(path, **settings), "mine")


def refusal(path: Path, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def coded(split: str = "train", classes: int = 3) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 4, 4, 3) whose first pixel is (class, number, split), the classes by turns."""
    labels = np.tile(np.arange(classes), COUNTS[split])
    images = np.zeros((len(labels), 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = labels
    images[:, 0, 0, 1] = np.repeat(np.arange(COUNTS[split]), classes)
    images[:, 0, 0, 2] = list(COUNTS).index(split)
    return images, labels


def assert_right(found: Source, *splits: str, classes: Sequence[str] = NAMES) -> None:
    """Each class has its own images, in the order of their numbers, in the splits named and no others."""
    assert found.classes == tuple(classes)
    assert list(found.splits) == list(splits)
    for split in splits:
        count = COUNTS[split]
        first = found.splits[split].images[:, :, 0, 0]
        assert found.splits[split].labels.tolist() == first[:, 0].tolist() == np.repeat(np.arange(len(classes)), count).tolist()
        assert first[:, 1].tolist() == np.tile(np.arange(count), len(classes)).tolist()
        if first.shape[1] == 3:
            assert set(first[:, 2].tolist()) == {list(COUNTS).index(split)}


def table(split: str = "train", features: Mapping[str, Any] | None = None, **columns: object) -> pa.Table:
    """The images in a column image, and others."""
    images, _ = coded(split)
    made = pa.table({"image": pa.array([pictures.png(image) for image in images], pa.binary()), **columns})
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}) if features else made


def texts(split: str = "train") -> list[str]:
    return [NAMES[label] for label in coded(split)[1]]


def numbers(split: str = "train") -> list[int]:
    return list(map(int, coded(split)[1]))


def write(made: pa.Table, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path)
    return path


def class_label(names: Sequence[str] = NAMES) -> dict[str, Any]:
    return {"names": list(names), "_type": "ClassLabel"}


FOLDS = [row % 5 for row in range(18)]
LETTERS = [chr(65 + row % 7) for row in range(18)]

LABELLED: dict[str, tuple[pa.Table, Sequence[str]]] = {  # tables, and their classes
    "text beside folds": (table(label=texts(), fold=FOLDS), NAMES),
    "text before numbers": (table(fold=FOLDS, id=list(range(18)), label=texts()), NAMES),
    "text alone": (table(kind=texts()), NAMES),
    "numbers alone": (table(kind=numbers()), "012"),
    "capitals": (table(Label=texts(), caption=LETTERS), NAMES),
    "target": (table(target=texts(), width=[4] * 18), NAMES),
    "label before class": (table(**{"class": LETTERS, "label": texts()}), NAMES),
    "label before a name": (table(label=numbers(), label_name=LETTERS), "012"),
    "large text": (table(label=pa.array(texts(), pa.large_string())), NAMES),
    "text view": (table(label=pa.array(texts(), pa.string_view())), NAMES),
    "dictionary": (table(label=pa.array(texts()).dictionary_encode(), fold=FOLDS), NAMES),
    "dictionary of numbers": (table(label=pa.array(numbers()).dictionary_encode()), "012"),
    "whole real numbers": (table(label=pa.array(numbers(), pa.float64())), "012"),
    "bytes": (table(label=pa.array(numbers(), pa.uint8())), "012"),
    "pandas' index": (table(kind=texts(), __index_level_0__=list(range(18))), NAMES),
    "metadata": (table(features={"target": class_label()}, target=numbers(), label=LETTERS), NAMES),
    "breed": (table(features={"breed": class_label()}, breed=numbers(), fold=FOLDS), NAMES),
    "fine before coarse": (
        table(
            features={"coarse_label": class_label("xyz"), "fine_label": class_label()}, coarse_label=FOLDS, fine_label=numbers()
        ),
        NAMES,
    ),
    "numbers from 5 with gaps": (table(label=[5 + 2 * n for n in numbers()]), "579"),
    "unused names": (
        table(features={"label": class_label(("ant", *NAMES, "fly"))}, label=[1 + n for n in numbers()]), NAMES
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LABELLED)
def test_the_column_of_labels(case: str, tmp_path: Path) -> None:
    made, classes = LABELLED[case]
    assert_right(read(write(made, tmp_path / "made.parquet")), "train", classes=classes)


def test_true_and_false_are_two_classes(tmp_path: Path) -> None:
    made = table(label=[number == 1 for number in numbers()])
    found = read(write(made, tmp_path / "made.parquet"))
    assert found.classes == ("0", "1")
    assert (found.splits["train"].labels == (found.splits["train"].images[:, 0, 0, 0] == 1)).all()


def test_what_was_decided_is_said(tmp_path: Path) -> None:
    cases = {
        "the labels are those of the column label, not of fold": table(label=texts(), fold=FOLDS),
        "the labels are those of the column kind, the only one that can hold them": table(kind=texts()),
        "the labels are the numbers 5, 7, 9, which name the classes": table(label=[5 + 2 * n for n in numbers()]),
        "the labels are the numbers 1 to 3, which name the classes": table(label=[1 + n for n in numbers()]),
        "no training image is of ant, fly: left out of the classes": LABELLED["unused names"][0],
    }
    for sentence, made in cases.items():
        assert forms.read(write(made, tmp_path / "made.parquet")).notes == (sentence,)
    assert forms.read(write(table(label=texts()), tmp_path / "made.parquet")).notes == ()


REFUSED: dict[str, tuple[pa.Table, str]] = {
    "two texts": (table(first=texts(), second=LETTERS), "columns first, second: name one with --label-column"),
    "a text and a number": (table(kind=texts(), fold=FOLDS), "columns kind, fold: name one"),
    "two of metadata": (
        table(features={"breed": class_label(), "colour": class_label("xyz")}, breed=numbers(), colour=numbers(), fold=FOLDS),
        "columns breed, colour: name one",
    ),
    "several classes": (table(label=[[n] for n in numbers()]), "an image of several classes can't be used"),
    "fractions": (table(label=[n + 0.5 for n in numbers()]), "labels in label that are no whole numbers"),
    "dates": (table(label=pa.array(numbers(), pa.date32())), "labels are whole numbers or texts"),
    "nulls": (table(label=[None, *texts()[1:]]), "lacks 1 of its labels"),
    "blanks": (table(label=["", " ", *texts()[2:]]), "lacks 2 of its labels"),
    "below zero": (table(label=[-1, *numbers()[1:]]), "the label -1, which stands for images without a class"),
    "no name": (table(features={"label": class_label(("a", "b"))}, label=numbers()), "the label 2, but the classes are 0 to 1"),
    "no label": (table(), "it needs labels as integers or texts in a column label"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_are_not_clear_are_refused(case: str, tmp_path: Path) -> None:
    made, words = REFUSED[case]
    assert words in refusal(write(made, tmp_path / "made.parquet"))


def test_a_column_that_is_named_goes_before_all(tmp_path: Path) -> None:
    path = write(table(features={"label": class_label("xyz")}, label=FOLDS, kind=texts()), tmp_path / "made.parquet")
    assert_right(read(path, label_column="kind"), "train")
    assert "has no column sort of labels, but image (binary), label (int64), kind (string)" in refusal(
        path, label_column="sort"
    )
    assert "has no column image of labels" in refusal(path, label_column="image")
    np.savez(tmp_path / "made.npz", x=coded()[0], y=coded()[1])
    for other in (tmp_path / "made.npz", pictures.write_folder(tmp_path / "folder", {"a/1.png": b"", "b/1.png": b""})):
        text = f"the setting label_column is for Parquet, not for {other}: take it out"
        assert text in refusal(other, label_column="kind")


def test_the_column_of_images(tmp_path: Path) -> None:
    plain = table(label=texts())
    for name in ("picture", "Image", "img"):
        assert_right(read(write(plain.rename_columns([name, "label"]), tmp_path / "made.parquet")), "train")
    other = pa.array([b"x"] * 18)
    assert_right(read(write(plain.add_column(0, "thumbnail", other), tmp_path / "made.parquet")), "train")
    marked = plain.rename_columns(["photo", "label"]).add_column(0, "image", other)
    features = {"photo": {"_type": "Image"}, "image": {"_type": "Value", "dtype": "binary"}}
    marked = marked.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    assert_right(read(write(marked, tmp_path / "made.parquet")), "train")


def test_text_labels_are_as_class_folders(tmp_path: Path) -> None:
    """Their classes in natural order, so that the digest is the same."""
    images, labels = coded()
    names = ("kind 10", "kind 9", "b/c")
    files = {
        f"{names[k].replace('/', '-')}/{n}.png": pictures.png(i) for n, (i, k) in enumerate(zip(images, labels, strict=True))
    }
    folder = read(pictures.write_folder(tmp_path / "folder", files))
    said = [names[k].replace("/", "-") for k in labels]
    tables = (write(table(label=said), tmp_path / "made.parquet"), tmp_path / "made.npz", tmp_path / "bytes.npz")
    np.savez(tables[1], x=images, y=np.array(said))
    np.savez(tables[2], x=images, y=np.array(said).astype("S")[:, None])
    assert folder.classes == ("b-c", "kind 9", "kind 10")
    assert {read(path).sha256() for path in tables} == {folder.sha256()}


def test_rows_without_bytes_say_so(tmp_path: Path) -> None:
    images, _ = coded()
    rows = [{"bytes": None if n == 1 else pictures.png(image), "path": f"{n}.png"} for n, image in enumerate(images)]
    made = pa.table({"image": rows, "label": texts()})
    assert "made.parquet row 1 (it holds no bytes, only the path 1.png: write the images' bytes into the file)" in refusal(
        write(made, tmp_path / "made.parquet")
    )


LAYOUTS: dict[str, dict[str, str]] = {  # file -> split; what the hub and its tools write
    "converted": {"default/train/0000.parquet": "train", "default/test/0000.parquet": "test"},
    "partial": {"default/partial-train/0000.parquet": "train", "default/validation/0000.parquet": "val"},
    "folders": {"train/part-00000.snappy.parquet": "train", "Test/part-00000.snappy.parquet": "test"},
    "hashes": {
        "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet": "train",
        "data/validation-00000-of-00001-0f3c.parquet": "val",
        "data/test-00000-of-00001-b1.parquet": "test",
    },
    "names": {"mine_train.parquet": "train", "mine_test.parquet": "test"},
    "one split": {"train/0000.parquet": "train"},
    "unnamed part": {"default/0000.parquet": "train"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_of_parquet_files(layout: str, tmp_path: Path) -> None:
    for file, split in LAYOUTS[layout].items():
        write(table(split, label=texts(split)), tmp_path / file)
    assert_right(read(tmp_path), *sorted(LAYOUTS[layout].values(), key=list(COUNTS).index))


@pytest.mark.parametrize("folder", ["default/train", ""])
def test_parts_are_in_natural_order(folder: str, tmp_path: Path) -> None:
    made = table(label=texts())
    for part in range(18):
        write(made.slice(part, 1), tmp_path / folder / f"{part}.parquet")
    assert_right(read(tmp_path), "train")


def test_several_tables_are_a_question(tmp_path: Path) -> None:
    for config in ("full", "small"):
        for split in ("train", "test"):
            write(table(split, label=texts(split)), tmp_path / config / split / "0000.parquet")
    assert f"give the one to read as the source, {tmp_path / 'full'} or {tmp_path / 'small'}" in refusal(tmp_path)
    assert_right(read(tmp_path / "small"), "train", "test")
    write(table(label=texts()), tmp_path / "small/train/more-0001.parquet")
    write(table(label=texts()), tmp_path / "small/extra.parquet")
    assert "extra.parquet says no split" in refusal(tmp_path / "small")


def test_labels_of_a_test_split_must_be_known(tmp_path: Path) -> None:
    write(table(label=texts()), tmp_path / "train.parquet")
    write(table("test", label=["yak", *texts("test")[1:]]), tmp_path / "test.parquet")
    assert "the test split has the label yak, of which training has no image" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
@pytest.mark.parametrize("top", ["", "top/", "{split}/"])
def test_an_archive_for_each_split(suffix: str, top: str, tmp_path: Path) -> None:
    for split, name in (("train", "TrainSet"), ("val", "valid"), ("test", "images_test")):
        images, labels = coded(split)
        files = {
            f"{top.format(split=split)}{NAMES[k]}/{n}.png": pictures.png(image)
            for n, (image, k) in enumerate(zip(images, labels, strict=True))
        } | {"readme.txt": b"", ".x": b""}
        write_archive = pictures.write_zip if suffix == ".zip" else pictures.write_tar
        write_archive(tmp_path / f"{name}{suffix}", files)
    found = read(tmp_path)
    assert_right(found, "train", "val", "test")
    said = {"readme.txt": BY_NAME, ".x": HIDDEN}
    assert found.left_out == {f"{split}/{name}": why for split in COUNTS for name, why in said.items()}


def test_archives_that_say_no_split_are_a_question(tmp_path: Path) -> None:
    for name in ("train.zip", "more.zip"):
        pictures.write_zip(tmp_path / name, {"a/1.png": b"", "b/1.png": b""})
    assert "holds more.zip, train.zip: name the one to read" in refusal(tmp_path)


def medmnist(shape: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{split}_{kind}": array
        for split, pair in shape.items()
        for kind, array in zip(("images", "labels"), pair, strict=True)
    }


def test_medmnists_arrays(tmp_path: Path) -> None:
    made = {split: (coded(split)[0], coded(split)[1][:, None].astype(np.uint8)) for split in COUNTS}
    np.savez(tmp_path / "pathmnist.npz", **medmnist(made))
    assert_right(read(tmp_path / "pathmnist.npz"), "train", "val", "test", classes="012")
    several = {split: (images, np.repeat(labels, 14, axis=1)) for split, (images, labels) in made.items()}
    np.savez(tmp_path / "chestmnist.npz", **medmnist(several))
    assert "train_labels in" in refusal(tmp_path / "chestmnist.npz")
    assert "images of several classes at once can't be used" in refusal(tmp_path / "chestmnist.npz")


@pytest.mark.parametrize(
    "keys", [("x", "y"), ("x_{split}", "y_{split}"), ("{split}_images", "{split}_labels"), ("arr_0", None)]
)
def test_a_file_of_arrays_for_each_split(keys: tuple[str, str | None], tmp_path: Path) -> None:
    """As k49-train-imgs.npz and k49-train-labels.npz where images and labels are apart."""
    for split in ("train", "test"):
        images, labels = coded(split)
        name, other = keys[0].format(split=split), (keys[1] or "").format(split=split)
        if other:
            np.savez(tmp_path / f"{split}.npz", **{name: images, other: labels})
        else:
            np.savez(tmp_path / f"k49-{split}-imgs.npz", images)
            np.savez(tmp_path / f"k49-{split}-labels.npz", labels)
    assert_right(read(tmp_path), "train", "test", classes="012")
    np.savez(tmp_path / "train-2.npz", x=coded()[0], y=coded()[1])
    assert "are for the same split: leave one of them out" in refusal(tmp_path)
    np.savez(tmp_path / "other.npz", x=coded()[0], y=coded()[1])
    assert "name the one to read as the source" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("labels", "classes"), [([1, 2, 3], "123"), ([0, 5, 1000], ("0", "5", "1000")), ([2.0, 4.0, 7.0], "247")]
)
def test_numbers_of_classes_need_not_begin_at_0(labels: list[float], classes: Sequence[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "made.npz", x=coded()[0], y=np.array(labels)[coded()[1]])
    assert_right(read(tmp_path / "made.npz"), "train", classes=classes)


def test_names_in_an_array(tmp_path: Path) -> None:
    images, labels = coded()
    np.savez(tmp_path / "made.npz", x=images, y=labels + 1, classes=np.array(["ant", *NAMES]), extra=labels)
    found = forms.read(tmp_path / "made.npz")
    assert found.classes == NAMES
    assert found.notes == (
        "no training image is of ant: left out of the classes",
        f"left out, as no words for images or labels: extra in {tmp_path / 'made.npz'}",
    )
    np.savez(tmp_path / "made.npz", x=images, y=np.array(texts()), classes=np.array(NAMES))
    assert "holds labels as texts beside numbers or the names of numbers" in refusal(tmp_path / "made.npz")


def write_idx(folder: Path, name: str, array: NDArray[Any], code: int = 8, packed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = bytes((0, 0, code, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


def write_emnist(folder: Path, name: str, first: int, classes: int, packed: bool = True) -> None:
    """As published: images transposed."""
    for split in ("train", "test"):
        images, labels = coded(split, classes)
        write_idx(folder, f"emnist-{name}-{split}-images-idx3-ubyte", transposed(marked(images[..., 0])), packed=packed)
        write_idx(folder, f"emnist-{name}-{split}-labels-idx1-ubyte", (labels + first).astype(np.uint8), packed=packed)
    (folder / f"emnist-{name}-mapping.txt").write_text("1 65 97\n")


def marked(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """With the row below the first in white, which tells rows from columns."""
    images = images.copy()
    images[:, 1] = 255
    return images


def transposed(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(images.transpose(0, 2, 1))


@pytest.mark.parametrize(
    ("name", "first", "classes", "some"),
    [
        ("letters", 1, 26, {0: "A", 25: "Z"}),
        ("digits", 0, 10, {0: "0", 9: "9"}),
        ("balanced", 0, 47, {10: "A", 36: "lowercase a", 46: "lowercase t"}),
        ("byclass", 0, 62, {35: "Z", 36: "lowercase a", 61: "lowercase z"}),
    ],
)
def test_emnist_as_published(name: str, first: int, classes: int, some: Mapping[int, str], tmp_path: Path) -> None:
    write_emnist(tmp_path / "gzip", name, first, classes)
    for path in (tmp_path, tmp_path / "gzip"):
        found = read(path)
        assert len(found.classes) == classes
        assert all(found.classes[label] == expected for label, expected in some.items())
        for split in ("train", "test"):
            images = found.splits[split].images[:, 0]
            assert images[:, 0, 0].tolist() == found.splits[split].labels.tolist()
            assert (images[:, 1] == 255).all()
            assert (images[:, 2] == 0).all()
    assert "EMNIST stores its images transposed: they are turned upright" in forms.read(tmp_path).notes


def test_several_sets_of_idx_files_are_a_question(tmp_path: Path) -> None:
    write_emnist(tmp_path / "EMNIST/raw", "letters", 1, 26, packed=False)
    write_emnist(tmp_path / "EMNIST/raw", "digits", 0, 10, packed=False)
    path = tmp_path / "EMNIST/raw/emnist-letters-train-images-idx3-ubyte"
    assert f"give one of these files as the source, {path.parent}/emnist-digits-train-images-idx3-ubyte, {path}" in refusal(
        tmp_path
    )
    assert read(path).classes[25] == "Z"
    assert read(path.with_name("emnist-digits-test-labels-idx1-ubyte")).classes[9] == "9"


def test_qmnists_first_column_is_the_class(tmp_path: Path) -> None:
    for split in ("train", "test"):
        images, labels = coded(split)
        write_idx(tmp_path, f"qmnist-{split}-images-idx3-ubyte", images[..., 0])
        columns = np.stack([labels, *[labels * 0 + 7] * 7], axis=1).astype(">i4")
        write_idx(tmp_path, f"qmnist-{split}-labels-idx2-int", columns, code=12)
    found = read(tmp_path)
    assert found.splits["test"].labels.tolist() == found.splits["test"].images[:, 0, 0, 0].tolist()
    assert found.classes == ("0", "1", "2")


def test_idx_labels_from_1(tmp_path: Path) -> None:
    images, labels = coded()
    write_idx(tmp_path, "train-images-idx3-ubyte", images[..., 0])
    write_idx(tmp_path, "train-labels-idx1-ubyte", (labels + 1).astype(np.uint8))
    write_idx(tmp_path, "t10k-images-idx3-ubyte", images[..., 0])
    assert f"{tmp_path} lacks t10k-labels-idx1-ubyte" in refusal(tmp_path)
    write_idx(tmp_path, "t10k-labels-idx1-ubyte", labels.astype(np.uint8))
    assert "the test split has the label 0, of which training has no image" in refusal(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    found = read(tmp_path)
    assert found.classes == ("1", "2", "3")
    assert found.splits["train"].labels.tolist() == found.splits["train"].images[:, 0, 0, 0].tolist()


def test_files_beside_tables_are_named(tmp_path: Path) -> None:
    write(table(label=texts()), tmp_path / "hub/train.parquet")
    write_emnist(tmp_path / "emnist", "digits", 0, 10)
    (tmp_path / "arrays").mkdir()
    np.savez(tmp_path / "arrays/made.npz", x=coded()[0], y=coded()[1])
    expected = {"hub": "train.parquet", "emnist": "emnist-digits-", "arrays": "made.npz"}
    for name, used in expected.items():
        pictures.write_folder(tmp_path / name, {"cat/1.png": b"", "read.me": b"", ".hidden": b""})
        left_out = dict(forms.read(tmp_path / name).left_out)
        mapping = {"emnist-digits-mapping.txt"} if name == "emnist" else set()
        assert set(left_out) == {"cat/1.png", "read.me", ".hidden", *mapping}
        assert left_out.pop(".hidden") == HIDDEN
        assert all(why.startswith(f"beside {used}") for why in left_out.values())


def test_a_known_data_set_has_no_column_to_name() -> None:
    with pytest.raises(DataError, match="the setting label_column is for Parquet, not for digits: take it out"):
        reading.read(dataset("digits", label_column="kind"), "mine")
