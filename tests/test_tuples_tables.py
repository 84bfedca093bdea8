"""Tables of tuples: captions in CSV, Parquet, the hub's folders and Karpathy's files; what is missing is told in sentences."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from src.editing import params_edit
from src.ground.errors import DataError, UserError
from src.maths import retrieval, spectrograms
from src.settings import resolved
from src.settings.datasets import AudioModality, Dataset
from src.settings.networks import Encoders
from src.settings.params import load
from src.sources import downloads
from src.sources.images import Shape
from src.sources.tuples import known, layouts, names, pictures, raw, reading, sounds, texts
from src.sources.tuples.reading import TupleSource
from src.stages import init, init_tuples, prepare
from src.store.store import Store
from tests import tuples
from tests.imports import ROOT

COUNT = 20
PAIR: dict[str, Any] = {
    "picture": {"kind": "image", "size": 8},
    "words": {"kind": "text", "length": 12, "numbers": 4, "column": "caption"},
}


def read(source: Path, modalities: dict[str, Any] | None = None, **settings: Any) -> TupleSource:
    return reading.read(Dataset(source=str(source), modalities=modalities or PAIR, **settings), "mine", 0)


def write(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def captions(folder: Path, each: int = 2) -> list[dict[str, Any]]:
    """Rows of several captions a picture, whose files are written."""
    found = tuples.write_pictures(folder / "pictures", COUNT)
    return [{"image": name, "caption": f"{name[8:10]} said {k}"} for name in found for k in range(each)]


def check(source: TupleSource, each: int = 2) -> None:
    """All pictures and captions are there, a picture once, with its own captions, in one split."""
    seen: dict[str, str] = {}
    for split, value in source.splits.items():
        pictures, words = value.items["picture"], value.items["words"]
        assert len(pictures.groups) * each == len(words.groups) == len(value.rows)
        for picture, caption in value.rows.tolist():
            assert pictures.groups[picture] == words.groups[caption]
            number = int(words.texts[caption][:2])
            assert abs(int(pictures.values[picture][0].float().mean()) - number * 7) <= 1
            assert seen.setdefault(words.texts[caption][:2], split) == split
    assert len(seen) == COUNT
    assert {split: len(value.items["picture"].groups) for split, value in source.splits.items()} == {
        "train": 12,
        "val": 4,
        "test": 4,
    }


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv(tmp_path: Path, delimiter: str) -> None:
    write(tmp_path / "captions.csv", captions(tmp_path), delimiter)
    from_folder, from_file = read(tmp_path), read(tmp_path / "captions.csv")
    check(from_folder)
    assert from_folder.sha256 == from_file.sha256
    assert "columns: picture is image, words is caption" in from_folder.notes


def captioned(folder: Path) -> Dataset:
    write(folder / "captions.csv", captions(folder))
    return Dataset(source=str(folder), modalities=PAIR)


def spoken(folder: Path) -> Dataset:
    tuples.write_recordings(folder / "fsdd")
    (own,) = tuples.spoken(tuples.params(), folder / "fsdd")["prepare"].values()
    return Dataset(**own)


@pytest.mark.parametrize(("make", "few"), [(captioned, 5), (spoken, 500)])
def test_the_digest_is_that_of_the_source_however_it_is_split(
    make: Callable[[Path], Dataset], few: int, tmp_path: Path
) -> None:
    """So that a source that nobody touched is not refused under another seed, name, or setting of splits."""
    own = make(tmp_path)
    whole = reading.read(own, "mine", 0)
    told = own.model_copy(update={"sha256": whole.sha256})
    others = [reading.read(told, "mine", 1), reading.read(told, "yours", 0)]
    for change in ({"val_fraction": 0.3}, {"test_fraction": 0.3}, {"train_images": few}):
        others.append(reading.read(told.model_copy(update=change), "mine", 0))
    pictures = [next(iter(one.splits["train"].items.values())).values for one in (whole, *others)]
    assert not any(torch.equal(pictures[0], one) for one in pictures[1:])  # they are split in another way


def test_the_digest_is_that_of_items_rows_and_splits(tmp_path: Path) -> None:
    rows = [{**row, "split": "train" if n < 30 else "test"} for n, row in enumerate(captions(tmp_path))]
    first, *rest = rows
    moved = [{**row, "split": "val"} if n == 3 else row for n, row in enumerate(rows)]
    worded, parted = [{**first, "caption": "another"}, *rest], [{**first, "image": rest[-1]["image"]}, *rest]
    digests = set()
    for found in (rows, rest, moved, worded, parted):
        write(tmp_path / "captions.csv", found)
        digests.add(read(tmp_path / "captions.csv").sha256)
    write(tmp_path / "captions.csv", rows)
    Image.new("RGB", (12, 10)).save(tmp_path / "pictures" / first["image"])
    digests.add(read(tmp_path / "captions.csv").sha256)
    assert len(digests) == 6


def test_the_digest_of_sounds_is_not_that_of_rounded_spectrograms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another processor makes them."""
    own = spoken(tmp_path)
    before, made = reading.read(own, "mine", 0), spectrograms.spectrograms
    monkeypatch.setattr(spectrograms, "spectrograms", lambda *given: made(*given).nextafter(torch.tensor(2.0)))
    after = reading.read(own, "mine", 0)
    heard = [one.splits["train"].items["sound"].values for one in (before, after)]
    assert not torch.equal(*heard) and before.sha256 == after.sha256


def test_parquet_with_bytes_and_lists(tmp_path: Path) -> None:
    """As the Hugging Face hub stores pictures, and several captions of each in a list."""
    rows = captions(tmp_path / "elsewhere")
    found = list(dict.fromkeys(row["image"] for row in rows))
    table = {
        "image": [{"bytes": (tmp_path / "elsewhere/pictures" / name).read_bytes(), "path": name} for name in found],
        "caption": [[row["caption"] for row in rows if row["image"] == name] for name in found],
    }
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table(table), tmp_path / "hub" / "train-00000-of-00001.parquet")
    check(read(tmp_path / "hub"))


def test_folders_of_the_hub_with_metadata(tmp_path: Path) -> None:
    rows = captions(tmp_path / "old", each=1)
    for split, own in (("train", rows[:14]), ("validation", rows[14:17]), ("test", rows[17:])):
        folder = tmp_path / "new" / split
        folder.mkdir(parents=True)
        for row in own:
            (tmp_path / "old/pictures" / row["image"]).rename(folder / row["image"])
        write(folder / "metadata.csv", [{"file_name": row["image"], "caption": row["caption"]} for row in own])
    found = read(tmp_path / "new")
    assert {split: len(value.rows) for split, value in found.splits.items()} == {"train": 14, "val": 3, "test": 3}
    assert found.splits["test"].items["words"].texts == tuple(row["caption"] for row in rows[17:])


def hub(folder: Path, count: int = 12) -> Path:
    """Folders of splits with pictures of the same names, each with a table of its own."""
    for shade, split in enumerate(("train", "validation", "test"), start=1):
        (folder / split).mkdir(parents=True)
        names = [f"{number}.png" for number in range(count)]
        for number, name in enumerate(names):
            Image.new("RGB", (8, 8), (80 * shade, 20 * number, 0)).save(folder / split / name)
        write(folder / split / "metadata.csv", [{"file_name": name, "caption": f"{name} of {split}"} for name in names])
    return folder


def test_a_table_in_a_split_is_of_the_pictures_beside_it(tmp_path: Path) -> None:
    """Though other splits have pictures of the same names, also where one lacks a picture, or can't show it."""
    found = read(hub(tmp_path / "hub"))
    assert not any("without a row" in note for note in found.notes)
    for shade, (split, folder) in enumerate((("train", "train"), ("val", "validation"), ("test", "test")), start=1):
        pictures, words = found.splits[split].items.values()
        assert words.texts == tuple(f"{number}.png of {folder}" for number in range(12))
        assert pictures.values[:, :2, 0, 0].tolist() == [[80 * shade, 20 * number] for number in range(12)]
    (tmp_path / "hub/train/3.png").write_bytes(b"words")
    (tmp_path / "hub/test/3.png").write_bytes(b"words")
    few = read(tmp_path / "hub", skip_broken=True)
    assert list(few.broken) == ["test/3.png", "train/3.png"]
    (tmp_path / "hub/train/3.png").unlink()
    (tmp_path / "hub/test/3.png").unlink()
    for number in (2, 4):
        (tmp_path / f"hub/test/{number}.png").unlink()
    sentence = (
        rf"4 files that the table names can't be found below {tmp_path}/hub, test/2\.png, test/3\.png, test/4\.png, \.\.\.:"
    )
    with pytest.raises(DataError, match=sentence):
        read(tmp_path / "hub")


def test_a_text_in_the_place_of_a_path_is_no_file(tmp_path: Path) -> None:
    write(tmp_path / "captions.csv", [{"image": "a dog and " * 99, "caption": str(n)} for n in range(9)])
    with pytest.raises(DataError, match="1 file that the table names can't be found"):
        read(tmp_path)


def test_items_in_two_splits_are_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As images in classes are: files with the same bytes, or one that rows of several splits name; not the same words."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    hub(tmp_path / "hub")
    for number in (3, 5, 7):
        shutil.copy(f"hub/train/{number}.png", f"hub/test/{number + 1}.png")
    line = "3 pictures of the test split stand in the training split too, byte for byte: "
    line += "test/4.png and train/3.png, test/6.png and train/5.png, ..."
    init.run("hub", "mine", 8, 1)
    assert f"problem: {line}" in (told := capsys.readouterr().err) and told.count("byte for byte") == 1
    prepare.run(Store(), resolved.data_set(load(), "mine"))
    assert f"mine: warning: {line}" in (told := capsys.readouterr().err) and told.count("byte for byte") == 1
    rows = [{**row, "split": ("train", "test")[n % 2]} for n, row in enumerate(captions(tmp_path))]
    stand = (
        ("18 pictures of the test split stand in the training split too", "picture-00.png, picture-01.png, ..."),
        (
            "2 pictures of the test split stand in the validation split too",
            "picture-10.png, picture-14.png",
        ),
    )
    write(tmp_path / "captions.csv", [row | {"caption": "the same words"} for row in rows])
    found = read(tmp_path / "captions.csv", val_fraction=0.1).problems
    assert found == tuple(f"{text}, byte for byte: {names}" for text, names in stand)
    write(tmp_path / "captions.csv", [row | {"caption": "the same words"} for row in captions(tmp_path)])
    assert read(tmp_path / "captions.csv").problems == ()


def test_karpathys_split(tmp_path: Path) -> None:
    """Flickr8k, Flickr30k and COCO alike: pictures in a folder beside it, more training pictures called restval."""
    rows = captions(tmp_path, each=5)
    found = list(dict.fromkeys(row["image"] for row in rows))
    splits = ["train"] * 10 + ["restval"] * 4 + ["val"] * 3 + ["test"] * 3
    images = [
        {
            "filepath": "val2014",
            "filename": name,
            "split": split,
            "sentences": [{"raw": row["caption"], "tokens": []} for row in rows if row["image"] == name],
        }
        for name, split in zip(found, splits, strict=True)
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    modalities = {"image": {"kind": "image", "size": 8}, "text": {"kind": "text"}}
    found_source = read(tmp_path, modalities)
    assert {split: len(value.rows) for split, value in found_source.splits.items()} == {"train": 70, "val": 15, "test": 15}
    assert [len(value.items["image"].groups) for value in found_source.splits.values()] == [14, 3, 3]


def test_sounds_and_vectors(tmp_path: Path) -> None:
    rows = captions(tmp_path, each=1)
    rng = np.random.default_rng(0)
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.wav").write_bytes(tuples.wav(rng.integers(-9000, 9000, 50 + number).astype(np.int16)))
        np.save(tmp_path / f"{number}.npy", rng.standard_normal(6))
        row |= {"audio": f"{number}.wav", "embedding": f"{number}.npy"}
    write(tmp_path / "table.csv", rows)
    more = {"heard": {"kind": "audio", "size": 8, "seconds": 0.1}, "known": {"kind": "vector"}}
    found = read(tmp_path, {**PAIR, **more}).splits["train"].items
    assert found["heard"].values.shape[1:] == (1, 8, 8)
    assert found["heard"].waves is not None
    assert found["heard"].waves.shape[1] == 80
    assert found["known"].values.shape[1:] == (6,)


def lacking_file(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (folder / "pictures" / rows[0]["image"]).unlink()
    return rows


def not_a_picture(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (folder / "pictures" / rows[0]["image"]).write_bytes(b"words")
    return rows


WRONG: list[tuple[Callable[[Path, list[dict[str, Any]]], list[dict[str, Any]]], str]] = [
    (lacking_file, r"prepare\.mine: 1 file that the table names can't be found below .*picture-00\.png: put them there"),
    (not_a_picture, r"picture-00\.png can't be read as an image .*repair it, or leave its rows out with skip_broken: true"),
    (
        lambda _, rows: [{**rows[0], "caption": " "}, *rows[1:]],
        r"1 row without a value, .*row 1 \(caption\): fill them in, or leave",
    ),
    (lambda _, rows: [{**row, "split": "holdout"} for row in rows], r"row 1 has the split 'holdout': use train, val and test"),
    (
        lambda _, rows: [{"image": row["image"], "title": row["caption"]} for row in rows],
        r"no column caption, but image, title",
    ),
    (lambda _, rows: rows[:1], r"a test split can't be cut off 1 item: add some"),
]


def test_a_folder_called_as_a_table_is_none(tmp_path: Path) -> None:
    write(tmp_path / "captions.csv", captions(tmp_path))
    (tmp_path / "notes.txt").mkdir()
    check(read(tmp_path))


def test_lines_that_are_no_objects(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('["a.png", "a word"]\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata\.jsonl can't be read as a table \(a line is no object with named values"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["metadata.jsonl", "dataset_mine.json"])
def test_half_a_character_is_no_text(name: str, tmp_path: Path) -> None:
    """Which JSON has escapes for, and no file can hold; two halves are a whole."""
    found = tuples.write_pictures(tmp_path, 9)
    for half, other in (("\\ud83d", ""), ("\\ud83d", "\\uDE00")):
        images = [{"filename": one, "split": "train", "sentences": [{"raw": "HALF"}]} for one in found]
        lines = [json.dumps({"file_name": one, "caption": "HALF"}) for one in found]
        text = json.dumps({"images": images}) if name.endswith("json") else "\n".join(lines)
        (tmp_path / name).write_text(text.replace("HALF", half + other), encoding="utf-8")
        if other:
            assert read(tmp_path).splits["val"].items["words"].texts[0] == "\U0001f600"
        else:
            with pytest.raises(DataError, match=rf"{name} can't be read as a table \(.*surrogates not allowed\): repair it"):
                read(tmp_path)


def test_a_line_ends_where_json_lines_end(tmp_path: Path) -> None:
    """Not at the other separators of Unicode, which JSON may hold as they are."""
    rows = [{"file_name": f"{n}.png", "text": f"one\u2028two\x85{n}"} for n in range(3)]
    table = tmp_path / "metadata.jsonl"
    table.write_text("".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows), encoding="utf-8")
    assert list(layouts._values(table)) == rows


def test_files_that_a_parquet_table_names(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": None, "path": f"{n}.png"}, "caption": str(n)} for n in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="20 files that the table names can't be found"):
        read(tmp_path)


VECTORS: dict[str, Any] = {"words": PAIR["words"], "numbers": {"kind": "vector", "column": "vector"}}


@pytest.mark.parametrize(
    ("write_one", "sentence"),
    [
        (lambda path: np.save(path, np.zeros(4)), r"07\.npy has 4 numbers, .*\.npy 3: bring all vectors to one length"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01"), r"07\.npy can't be read as an array of NumPy .*: write it again"),
    ],
)
def test_vectors_that_do_not_fit(write_one: Callable[[Path], object], sentence: str, tmp_path: Path) -> None:
    for number in range(20):
        np.save(tmp_path / f"{number:02d}.npy", np.zeros(3))
    write_one(tmp_path / "07.npy")
    write(tmp_path / "all.csv", [{"vector": f"{number:02d}.npy", "caption": f"{number}"} for number in range(20)])
    with pytest.raises(DataError, match=sentence):
        read(tmp_path, VECTORS, val_fraction=0.05, test_fraction=0.05)


@pytest.mark.parametrize(("change", "sentence"), WRONG)
def test_what_is_wrong_is_a_sentence(
    tmp_path: Path, change: Callable[[Path, list[dict[str, Any]]], list[dict[str, Any]]], sentence: str
) -> None:
    rows = change(tmp_path, captions(tmp_path))
    write(tmp_path / "captions.csv", rows)
    with pytest.raises(DataError, match=sentence):
        read(tmp_path)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    """A row without caption where that is wanted, a picture without a row, a column of languages."""
    rows = [{**row, "language": "en", "rating": 3} for row in captions(tmp_path)]
    rows[0]["caption"] = ""
    write(tmp_path / "captions.csv", rows[:-2])
    told = "\n".join(read(tmp_path, skip_broken=True).notes)
    assert "left out: 1 row without a value" in told
    assert "left out: 1 picture without a row in the table, picture-19.png" in told
    assert "the column language is not read: captions of all languages are taken alike" in told
    assert "columns that are not read: rating" in told


def test_rows_of_broken_pictures_are_left_out_before_all_else(tmp_path: Path) -> None:
    """What is left is the data set that a table without these rows is, digest and splits."""
    rows = captions(tmp_path)
    broken = rows[0]["image"], rows[-1]["image"]
    for name in broken:
        (tmp_path / "pictures" / name).write_bytes((tmp_path / "pictures" / name).read_bytes()[:50])
    write(tmp_path / "captions.csv", rows)
    found = read(tmp_path / "captions.csv", skip_broken=True)
    write(tmp_path / "captions.csv", [row for row in rows if row["image"] not in broken])
    whole = read(tmp_path / "captions.csv")
    assert found.sha256 == whole.sha256 and sum(len(split.rows) for split in found.splits.values()) == len(rows) - 4
    for split, own in whole.splits.items():
        theirs = found.splits[split].tensors()
        assert all(torch.equal(theirs[name], tensor) for name, tensor in own.tensors().items())
    (told,) = (line for line in found.notes if line.startswith("left out"))
    assert re.fullmatch(rf"left out: 2 images that can't be read, {broken[0]} \(.+\), {broken[1]} \(.+\)", told)
    statistics = reading.statistics(found, Dataset(source="captions.csv", modalities=PAIR))
    assert statistics.skipped == broken


def test_a_split_without_a_picture_that_can_be_read_is_refused(tmp_path: Path) -> None:
    """And none is cut off others in its place."""
    rows = [{**row, "split": "test" if n == 0 else ""} for n, row in enumerate(captions(tmp_path, each=1))]
    write(tmp_path / "captions.csv", not_a_picture(tmp_path, rows))
    with pytest.raises(DataError, match=r"no picture of the test split can be read, picture-00\.png \(.*\): repair them"):
        read(tmp_path, skip_broken=True)


def test_init_leaves_broken_pictures_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "captions.csv", not_a_picture(tmp_path, captions(tmp_path)))
    init.run("captions.csv", "mine", 8, None, skip_broken=True)
    own = load().prepare["mine"]
    assert own.skip_broken and own.sha256 == reading.read(own, "mine", 0).sha256
    assert "left out: 1 image that can't be read, picture-00.png (no image of a known format)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "sentence"),
    [("nowhere", "nowhere does not exist: give the path"), (".", "holds no table with captions: add one")],
)
def test_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, sentence: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=sentence):
        read(Path(source))


@pytest.mark.parametrize(
    "kinds", [{"text": {"kind": "text"}, "image": {"kind": "image"}}, {"a": {"kind": "image"}, "text": {"kind": "text"}}]
)
def test_a_known_source_has_its_own_modalities(kinds: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"has the modalities image \(image\), text \(text\): name these, .* in this order"):
        read(Path("digits-seen-written"), kinds)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"path": "here"}, "comes with scikit-learn, and is read from no other place: leave out the path"),
        ({"skip_broken": True}, "the setting skip_broken is for tables, not for digits-seen-written: take it out"),
        (
            {"column": "caption"},
            "the setting column of the modality text is for tables, not for digits-seen-written: take it out",
        ),
    ],
)
def test_a_known_source_refuses_what_it_does_not_read(told: dict[str, Any], sentence: str) -> None:
    column = {key: told.pop(key) for key in ("column",) if key in told}
    kinds = {"image": {"kind": "image"}, "text": {"kind": "text", **column}}
    with pytest.raises(DataError, match=sentence):
        read(Path("digits-seen-written"), kinds, **told)


class Garbage(BaseHTTPRequestHandler):
    """Answers whatever is asked for with a page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Please log in</html>")

    def log_message(self, *words: object) -> None:
        """Says nothing."""


def test_recordings_that_are_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers with a page of its own: torchvision lets the error of zipfile through."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AST_DATA", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Garbage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/v1.zip"
        monkeypatch.setitem(downloads.ARCHIVES, "fsdd", (address, None))
        modalities = {"image": {"kind": "image"}, "text": {"kind": "text"}, "sound": {"kind": "audio"}}
        sentence = r"fsdd is not on this machine, and can't be downloaded \(File is not a zip file\): put its recordings into"
        with pytest.raises(DataError, match=sentence):
            read(Path("digits-seen-written-spoken"), modalities)
        server.shutdown()
    assert not list((tmp_path / "data/sources").iterdir())


def test_names_of_digits() -> None:
    """Forty languages, ten words each, and no word for two digits."""
    found = names.by_digit()
    assert len(names.WORDS) == 40
    assert all(len(words.split()) == 10 for words in names.WORDS.values())
    assert len({name for own in found for name in own}) == sum(map(len, found))
    assert {own[0] for own in found} > {"صفر"}
    assert all("eight" not in own for digit, own in enumerate(found) if digit != 8)


def test_characters_are_the_same_everywhere() -> None:
    one, other = texts.columns(["Ab", "ba"], 4, 8), texts.columns(["a"], 4, 8)
    assert (one[0, :, 0] == other[0, :, 0]).all()
    assert (one[0, :, 0] == one[1, :, 1]).all()
    assert (one[:, :, 2:] == 0).all()
    assert np.abs(one[0, :, 0] - one[0, :, 1]).max() > 0.1


def test_rows_pair_each_item_as_often_as_its_group_needs() -> None:
    groups = [np.array([0, 0, 0, 1]), np.array([1, 0, 1])]
    rows = raw.paired(groups, np.random.default_rng(0))
    assert (groups[0][rows[:, 0]] == groups[1][rows[:, 1]]).all()
    assert sorted(rows[:, 0].tolist()) == [0, 1, 2, 3, 3]
    assert sorted(rows[:, 1].tolist()) == [0, 1, 1, 1, 2]


def lacking(folder: Path) -> None:
    for name in ("3_anna_7.wav", "9_ben_0.wav"):
        (folder / name).unlink()


def lacking_a_digit(folder: Path) -> None:
    for path in folder.glob("4_*.wav"):
        path.unlink()


def twice(folder: Path) -> None:
    (folder / "more").mkdir()
    shutil.copy(folder / "3_anna_7.wav", folder / "more/3_anna_07.wav")


def cut_off(folder: Path) -> None:
    path = folder / "3_anna_7.wav"
    path.write_bytes(path.read_bytes()[:-20])


def of_another_rate(folder: Path) -> None:
    (folder / "3_anna_7.wav").write_bytes(tuples.wav(np.ones(9, dtype=np.int16), 4000))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lacking,
            r"fsdd lacks 2 recordings of FSDD, 3_anna_7\.wav, 9_ben_0\.wav: put them there, or download all of FSDD again",
        ),
        (lacking_a_digit, r"fsdd holds no recordings of the digits 4: it needs files as FSDD calls them"),
        (twice, r"more/3_anna_07\.wav is the recording that .*fsdd/3_anna_7\.wav is: remove one of them"),
        (cut_off, r"fsdd/3_anna_7\.wav is cut off, with 57 of its 67 samples: copy or download it again"),
        (
            lambda folder: (folder / "3_anna_7.wav").write_bytes(b"words"),
            r"fsdd/3_anna_7\.wav can't be read as a wav file \(.+\):",
        ),
        (of_another_rate, r"fsdd/3_anna_7\.wav has 4000 samples a second, .*fsdd/0_anna_0\.wav 800: bring all"),
    ],
)
def test_recordings_are_all_there_and_whole(spoil: Callable[[Path], object], sentence: str, tmp_path: Path) -> None:
    own = spoken(tmp_path)
    (tmp_path / "fsdd" / "0_anna_1000.wav").mkdir()  # which is no file
    assert len(known.recordings(tmp_path / "fsdd")) == 240
    spoil(tmp_path / "fsdd")
    with pytest.raises(DataError, match=rf"^prepare\.mine: .*{sentence}"):
        reading.read(own, "mine", 0)


def header(place: int, number: int) -> bytes:
    """A wav file that says something else at a place of its header."""
    whole = tuples.wav(np.arange(9, dtype=np.int16))
    return whole[:place] + number.to_bytes(4, "little") + whole[place + 4 :]


def test_a_sound_that_tells_no_length_is_read_to_its_end() -> None:
    """As what writes into a pipe leaves it."""
    assert sounds.decoded(header(40, 2**32 - 1), "a.wav")[0].tolist() == list(range(9))


def test_sounds_take_some_samples(tmp_path: Path) -> None:
    own = spoken(tmp_path).model_dump()
    own["modalities"]["sound"] |= {"seconds": 0.0001}
    with pytest.raises(DataError, match=r"0\.0001 seconds hold no sample of sounds with 800 a second: raise the modality's"):
        reading.read(Dataset(**own), "mine", 0)
    own["modalities"]["sound"] |= {"seconds": 0.001, "size": 2}
    values = reading.read(Dataset(**own), "mine", 0).splits["val"].items["sound"].values
    assert values.shape[1:] == (1, 2, 2) and values.isfinite().all()
    assert spectrograms.waves(values, 800, 1).isfinite().all()
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        AudioModality(kind="audio", size=1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"RIFF", r"can't be read as a wav file \(it ends too soon\): convert"),
        (tuples.wav(np.zeros(0, dtype=np.int16)), "holds no sound"),
        (header(24, 0), "says that it has 0 samples a second: convert it"),
        (header(24, 2**31), "says that it has 2,147,483,648 samples a second: convert it"),
    ],
)
def test_broken_sounds(content: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        sounds.decoded(content, "a.wav")


def test_channels_and_widths_of_samples() -> None:
    stereo = np.array([[1000, 3000], [-200, 0]], dtype=np.int16)
    assert sounds.decoded(tuples.wav(stereo, channels=2), "a.wav")[0].tolist() == [2000, -100]
    assert sounds.decoded(tuples.wav(np.array([128, 255], dtype=np.uint8)), "a.wav")[0].tolist() == [0, 32512]
    with pytest.raises(DataError, match=r"b\.wav has 400 samples a second, a\.wav 800: bring all"):
        sounds.of_one_length([(stereo[0], 800), (stereo[1], 400)], ["a.wav", "b.wav"], 1.0)


def test_full_scale_of_32_bits_does_not_turn_over() -> None:
    loud = np.array([0, 2**30, 2**31 - 1, -(2**31)], dtype=np.int32)
    assert sounds.decoded(tuples.wav(loud), "a.wav")[0].tolist() == [0, 16384, 32767, -32768]


def test_a_spectrogram_shows_pitch_and_can_be_heard_again() -> None:
    seconds = torch.arange(4000) / 8000
    tones = torch.stack([torch.sin(2 * torch.pi * pitch * seconds) for pitch in (300.0, 1200.0)])
    found = spectrograms.spectrograms(tones, 8000, 16)
    assert found.shape == (2, 1, 16, 16)
    assert (found.min() >= 0) & (found.max() == 1)
    low, high = found.mean(dim=(1, 3)).argmax(dim=1).tolist()
    assert low < high
    again = spectrograms.spectrograms(spectrograms.waves(found, 8000, 4000), 8000, 16)
    assert again.mean(dim=(1, 3)).argmax(dim=1).tolist() == [low, high]


def test_recall_is_counted_by_hand() -> None:
    """Queries 0 and 1 find their group first and second; query 2 has none in the gallery, and does not count."""
    queries, gallery = torch.eye(3), torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.8, 1.0]] * 6)
    groups, theirs = torch.tensor([5, 6, 7]), torch.tensor([5, 6] * 6)
    assert retrieval.recall(queries, groups, gallery, theirs).tolist() == [0.5, 0.5, 1.0]


def test_init_adds_a_first_run_on_a_folder_of_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by its table, and valid; classes of images are still found where there is no caption."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.csv", captions(tmp_path / "photos"))
    (tmp_path / "mine.csv").rename(tmp_path / "photos" / "mine.csv")
    init.run("photos", "photos", 16, None)
    params = load()
    assert params.runs["photos-6-low-rank"].dataset == "photos"
    assert list(params.prepare["photos"].modalities or {}) == ["image", "text"]
    told = capsys.readouterr()
    assert "train: 24 tuples of image 12, text 24" in told.out + told.err
    assert init_tuples.flaw(tmp_path / "photos" / "pictures") == ""
    with pytest.raises(DataError, match="--ipc 25 exceeds the 24 tuples"):
        init.run("photos", "more", 16, 25)
    before, table = params.prepare["photos"].sha256, tmp_path / "photos/mine.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("said", "sung"), encoding="utf-8")
    with pytest.raises(UserError, match=r"the items of photos are not those that prepare\.photos\.sha256 says: add --update"):
        init.run("photos", "photos", 16, None)
    init.run("photos", "photos", 16, None, update=True)
    assert load().prepare["photos"].sha256 not in (before, None)
    table.write_text("image,caption\n" + "".join(f"{n}.png, \n" for n in range(9)), encoding="utf-8")
    with pytest.raises(DataError, match="has no text in any row: write captions into its column caption"):
        init.run("photos", "silent", 16, 1)


@pytest.mark.parametrize("place", ["photos", "photos/captions.csv"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "image,caption\n0.png,\u00fcber\n".encode("latin-1"),
            r"as photos/captions\.csv can't be read as a table \('utf-8' codec",
        ),
        ("image,caption\n0.png,a\n".encode("utf-16"), r"as photos/captions\.csv can't be read as a table \('utf-8' codec"),
        (b"image,caption\n0.png\n", "a row has another number of columns than the header"),
        (b"image,caption,caption\n0.png,a,b\n", "two columns have one name in its header: image, caption, caption"),
        (b"image,caption\n", "holds a table without rows: add some"),
        (
            b"file,label\n0.png,cat\n",
            r"holds a table with the columns file, label: init looks for one of texts \(caption, .*image, audio",
        ),
    ],
)
def test_init_says_why_a_table_is_none_of_tuples(
    place: str, content: bytes, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not only that its pictures lie in no class folder, or that its file is no image folder."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    tuples.write_pictures(tmp_path / "photos", COUNT)
    Path("photos/captions.csv").write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        init.run(place, "mine", 8, None)
    Path("photos/captions.csv").unlink()
    with pytest.raises(DataError, match=r"does not exist: give the path|in no class folder") as told:
        init.run(place, "mine", 8, None)
    assert "tuples" not in str(told.value)


def test_init_refuses_a_data_set_other_than_the_one_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stays, and another one's digest would not fit it."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.csv", captions(tmp_path))
    shutil.copy("mine.csv", "yours.csv")
    init.run("mine.csv", "mine", 16, None)
    before = Path("params.yaml").read_text(encoding="utf-8")
    another = r"another prepare\.mine, with source mine\.csv and size 16: take another --name, or that --data and --size"
    for data, name, size, skip_broken, sentence in (
        ("mine.csv", "mine", 32, False, another),
        ("yours.csv", "mine", 16, False, another),
        ("mine.csv", "digits", 16, False, r"prepare\.digits with images in classes, and mine\.csv holds tuples: take another"),
        ("mine.csv", "mine", 16, True, r"with skip_broken false: set prepare\.mine\.skip_broken: true there, or take another"),
    ):
        with pytest.raises(UserError, match=sentence):
            init.run(data, name, size, None, skip_broken=skip_broken, update=True)
    assert Path("params.yaml").read_text(encoding="utf-8") == before


def test_init_reads_a_data_set_as_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the digest is the one that prepare finds; encoders fit its modalities, or are those that are there."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    rows = [{**row, "title": f"title {n}"} for n, row in enumerate(captions(tmp_path))]
    write(tmp_path / "mine.csv", rows)
    modalities = {**PAIR, "words": {**PAIR["words"], "length": 5, "column": "title"}}
    params_edit.add({"prepare": {"mine": {"source": "mine.csv", "modalities": modalities, "val_fraction": 0.3}}})
    init.run("mine.csv", "mine", 8, 2, update=True)
    params_edit.set_value(("networks", "mine-encoders", "embedding"), 32)
    write(tmp_path / "mine.csv", [{**row, "title": f"other {row['title']}"} for row in rows])
    init.run("mine.csv", "mine", 8, 2, update=True)
    params = load()
    own, network = params.prepare["mine"], params.networks["mine-encoders"]
    assert own.sha256 == reading.read(own, "mine", 0).sha256
    assert isinstance(network, Encoders)
    assert network.embedding == 32
    assert {name: encoder.family for name, encoder in network.encoders.items()} == {"picture": "ConvNet", "words": "TextNet"}


def test_init_looks_for_columns_as_often_whatever_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look goes through all rows, so that a look a row would take hours of a long table."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    looks: list[int] = []
    look = layouts.columns
    monkeypatch.setattr(layouts, "columns", lambda found: looks.append(len(found)) or look(found))
    counts = []
    for each in (1, 4):
        write(tmp_path / f"captions-{each}.csv", captions(tmp_path, each))
        looks.clear()
        init.run(f"captions-{each}.csv", f"mine-{each}", 8, 1)
        counts.append(len(looks))
    assert counts[0] == counts[1]


def test_what_is_said_of_images_makes_a_table_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names a column of labels wants classes, whatever texts are beside them."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("cats", "dogs"):
        tuples.write_pictures(tmp_path / "photos" / name, COUNT)
    write(tmp_path / "photos/labels.csv", [{"filename": "cats/picture-00.png", "text": "a cat"}])
    assert init_tuples.flaw(tmp_path / "photos") is None
    init.run("photos", "photos", 16, 1, splits="none")
    assert load().prepare["photos"].modalities is None


def flat(folder: Path, each: int = 2) -> Path:
    """A row a caption, each with the bytes of its picture."""
    rows = captions(folder / "elsewhere", each)
    held = [(folder / "elsewhere/pictures" / row["image"]).read_bytes() for row in rows]
    (folder / "flat").mkdir()
    path = folder / "flat" / "all.parquet"
    pq.write_table(pa.table({"image": held, "caption": [row["caption"] for row in rows]}), path)
    return path


def test_the_same_bytes_are_the_same_picture(tmp_path: Path) -> None:
    """So that none of them is in two splits."""
    check(read(flat(tmp_path)))


def test_texts_first_would_part_the_captions_of_a_picture(tmp_path: Path) -> None:
    turned = {"words": PAIR["words"], "picture": PAIR["picture"]}
    with pytest.raises(DataError, match="its picture has several texts, which splits by words would part: name picture first"):
        read(flat(tmp_path), turned)
    write(tmp_path / "one.csv", [{**row, "image": f"elsewhere/pictures/{row['image']}"} for row in captions_once(tmp_path)])
    assert sum(len(split.rows) for split in read(tmp_path / "one.csv", turned).splits.values()) == COUNT


def captions_once(folder: Path) -> list[dict[str, Any]]:
    names = sorted(path.name for path in (folder / "elsewhere/pictures").iterdir())
    return [{"image": name, "caption": f"{name[8:10]} said"} for name in names]


def test_train_images_are_drawn(tmp_path: Path) -> None:
    """And are not the first of a table, which may be sorted."""
    path = flat(tmp_path)
    few, whole = (read(path, **settings) for settings in ({"train_images": 5}, {}))
    kept = few.splits["train"].items["words"].texts
    all_of_them = whole.splits["train"].items["words"].texts
    assert len(kept) == 10 and set(kept) < set(all_of_them) and kept != all_of_them[:10]


@pytest.mark.parametrize(
    ("vectors", "sentence"),
    [
        ([1.0, float("nan")], "row . holds a vector with numbers that are not finite"),
        ([1.0, None], "row . holds a vector with numbers that are not finite"),
        (["a", "b"], "row . holds no vector of numbers"),
    ],
)
def test_vectors_hold_finite_numbers(vectors: list[Any], sentence: str, tmp_path: Path) -> None:
    table = pa.table({"vector": [vectors] * 9, "caption": [f"{n} said" for n in range(9)]})
    pq.write_table(table, tmp_path / "own.parquet")
    modalities = {"numbers": {"kind": "vector", "column": "vector"}, "words": PAIR["words"]}
    with pytest.raises(DataError, match=sentence):
        read(tmp_path / "own.parquet", modalities)


def test_a_table_without_a_row_to_train_on(tmp_path: Path) -> None:
    rows = [{**row, "split": "val" if n % 2 else "test"} for n, row in enumerate(captions(tmp_path))]
    write(tmp_path / "captions.csv", rows)
    with pytest.raises(DataError, match="no row is of the training split"):
        read(tmp_path)


def test_one_row_tells_the_columns(tmp_path: Path) -> None:
    """Of a table of images and labels no more is read to see that it is none of captions."""
    path = flat(tmp_path)
    assert len(layouts.rows(path, most=1)) == 1 and len(layouts.rows(path)) == 2 * COUNT


def test_what_was_changed_by_hand_stays_with_another_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    flat(tmp_path)
    init.run("flat", "flat", 16, None)
    params_edit.set_value(("experts", "flat", "count"), 3)
    init.run("flat", "flat", 16, 1)
    params = load()
    assert params.experts["flat"].count == 3 and params.runs["flat-1-low-rank"].ipc == 1


def test_more_pixels_than_the_guard_are_a_flaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the limit on, not only from twice of it, where Pillow itself raises."""
    content = (tmp_path / tuples.write_pictures(tmp_path, 1)[0]).read_bytes()
    width, height = Image.open(io.BytesIO(content)).size
    assert pictures.flaw(content, "a.png") == ""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", width * height - 1)
    assert "guard against decompression bombs" in pictures.flaw(content, "a.png")
    with pytest.raises(DataError, match=r"a\.png can't be read as an image .*decompression bombs"):
        pictures.decoded([content], ["a.png"], Shape(3, 8))
