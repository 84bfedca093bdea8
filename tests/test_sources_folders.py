"""Folders of images as people have them: names of splits, litter, files of every kind; each label and split is compared."""

from __future__ import annotations

import os
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from src.ground.errors import DataError, ParamsError
from src.settings import resolved
from src.settings.params import Params, parse
from src.sources import archives, contents, inspection, reading, splits
from src.sources.reading import Source
from src.sources.sentences import shown
from src.sources.trees import HIDDEN, LITTERED, NO_FILE, Folder
from src.sources.words import split_of_file, split_of_folder
from src.stages import records
from tests import pictures
from tests.pictures import CLASSES, coded_files, codes, dataset, expected

IMAGE = pictures.file_of(pictures.coded(0, 0))


def read(path: Path | str, **settings: object) -> Source:
    return reading.read(dataset(path, **settings), "mine")


def found_in(source: Source) -> dict[str, list[tuple[int, int, int]]]:
    return {split: codes(value) for split, value in source.splits.items()}


# -- names of splits

TRAIN_AND_TEST = [
    ("Training", "Testing"), ("seg_train", "seg_test"), ("train_images", "test_images"), ("TRAIN", "TEST"),
    ("trainset", "testset"), ("training_set", "test_set"), ("Train Data", "Test Data"), ("train2017", "test2017"),
    ("images.train", "images.test"),
    ("TrainImages", "TestImages"), ("trn", "tst"), ("01_train", "02_test"), ("train_64x64", "test_64x64"),
    ("seg_train/seg_train", "seg_test/seg_test"), ("training_set/training_set", "test_set/test_set"),
    ("train/images", "test/images"), ("train/made-2024", "test/made-2024"), ("train/a/b", "test"),
]  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("train", "test"), TRAIN_AND_TEST)
@pytest.mark.parametrize("top", ["", "archive/"])
def test_the_usual_names_of_splits(train: str, test: str, top: str, packed: bool, tmp_path: Path) -> None:
    files = coded_files({f"{top}{train}": 4, f"{top}{test}": 2})
    source = pictures.write_zip(tmp_path / "made.zip", files) if packed else pictures.write_folder(tmp_path / "made", files)
    found = read(source)
    assert found.classes == CLASSES
    assert found_in(found) == {"train": expected(4), "test": expected(2, 1)}
    usual = (train.casefold(), test.casefold(), top) == ("train", "test", "")
    assert found.notes == (() if usual else (f"folders of splits: train is {top}{train}, test is {top}{test}",))


@pytest.mark.parametrize("name", ["dev", "Validation", "val_images", "valid", "DevSet", "val2017"])
def test_the_usual_names_of_validation_splits(name: str, tmp_path: Path) -> None:
    found = read(pictures.write_folder(tmp_path, coded_files({"train": 3, name: 1})))
    assert found_in(found) == {"train": expected(3), "val": expected(1, 1)}


def test_names_that_are_no_splits() -> None:
    names = ("training wheels", "test tube", "cat", "trainer", "contest", "images", "train_test", "set", "validated", "part_a")
    assert [split_of_folder(name) for name in names] == [None] * len(names)


def test_the_name_of_a_file_may_say_more_than_its_split() -> None:
    names = {"k49-train-imgs": "train", "mine_TestSet2": "test", "train-00000-of-00001-a09b74b3ef9c3b56": "train"}
    names |= {"partial-validation": "val", "dev.zip": "val", "TrainImages.tar.gz": "train"}
    assert {name: split_of_file(name) for name in names} == names
    assert [split_of_file(name) for name in ("train-test", "contest", "made", "0000")] == [None] * 4


def test_classes_may_have_some_of_the_names(tmp_path: Path) -> None:
    """Without a training split there is none: a control group beside a test group."""
    found = read(pictures.write_folder(tmp_path, coded_files({"": 3}, ("control", "test"))))
    assert (found.classes, found_in(found)) == (("control", "test"), {"train": expected(3, classes=2)})


def test_splits_below_every_class(tmp_path: Path) -> None:
    made = coded_files({"train": 4, "valid": 1, "Test": 2})
    places = {path: path.split("/") for path in made}
    files = {f"{name}/{split}/{file}": made[path] for path, (split, name, file) in places.items()}
    found = read(pictures.write_folder(tmp_path, files))
    assert found_in(found) == {"train": expected(4), "val": expected(1, 1), "test": expected(2, 2)}
    assert found.notes == ("folders of splits: train, val, test in each class folder",)


@pytest.mark.parametrize("folder", ["seg_pred/seg_pred", "pred", "Unlabeled", "unlabelled_images"])
def test_images_without_labels_beside_a_training_split_are_left_out(folder: str, tmp_path: Path) -> None:
    files = coded_files({"seg_train/seg_train": 4, "seg_test/seg_test": 2})
    files |= {f"{folder}/{number}.jpg": IMAGE for number in range(5)}
    found = read(pictures.write_folder(tmp_path, files))
    assert found_in(found) == {"train": expected(4), "test": expected(2, 1)}
    assert found.left_out == {f"{folder}/{number}.jpg": splits.NO_LABELS for number in range(5)}


@pytest.mark.parametrize("folder", ["test", "test/images", "test1"])
def test_a_test_split_without_class_folders_is_left_out(folder: str, tmp_path: Path) -> None:
    files = {**coded_files({"train": 4}), f"{folder}/1.png": IMAGE, f"{folder}/2.png": IMAGE}
    found = read(pictures.write_folder(tmp_path, files))
    assert found_in(found) == {"train": expected(4)}
    assert found.left_out == dict.fromkeys((f"{folder}/1.png", f"{folder}/2.png"), splits.NO_LABELS)


def test_a_class_may_have_a_name_that_says_nothing(tmp_path: Path) -> None:
    files = {**coded_files({"train": 3}, ("drawings", "photos")), "test/photos/0.png": IMAGE}
    found = read(pictures.write_folder(tmp_path, files))
    assert found.classes == ("drawings", "photos")
    assert found.splits["test"].labels.tolist() == [1]


DOUBTS = {
    "parts": ({"part_a": 2, "part_b": 5}, "--splits train=part_b,test=part_a, or classes, --splits none"),
    "parts in a folder": ({"all/part_a": 2, "all/part_b": 5}, "--splits train=part_b,test=part_a,"),
    "a test split": ({"batch 1": 2, "test": 5}, "--splits 'train=batch 1,test=test', "),
    "a validation split": ({"more": 2, "val": 5}, "--splits train=more,val=val, "),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_folders_with_the_same_folders_are_a_question(case: str, tmp_path: Path) -> None:
    parts, answer = DOUBTS[case]
    with pytest.raises(DataError, match=r"^prepare\.mine: .* same names in them \(cat, dog, emu\): say whether") as caught:
        read(pictures.write_folder(tmp_path, coded_files(parts)))
    assert answer in str(caught.value)


def test_a_split_with_some_of_the_classes_is_a_question_too(tmp_path: Path) -> None:
    files = {**coded_files({"a": 3}), "b/cat/0.png": IMAGE, "c/0.png": IMAGE}
    with pytest.raises(DataError, match=r"holds a, b with folders of the same names"):
        read(pictures.write_folder(tmp_path, files))


@pytest.mark.parametrize("name", ["images", "x"])
def test_one_folder_of_a_name_in_every_class_is_none(name: str, tmp_path: Path) -> None:
    files = {path.replace("/", f"/{name}/"): content for path, content in coded_files({"": 3}).items()}
    assert found_in(read(pictures.write_folder(tmp_path, files))) == {"train": expected(3)}


def test_a_folder_train_of_images_alone_is_a_question(tmp_path: Path) -> None:
    """Vehicles: bus, car, train."""
    folder = pictures.write_folder(tmp_path, coded_files({"": 3}, ("bus", "car", "train")))
    with pytest.raises(DataError, match=r"holds train and bus, both full of images, .* --splits none"):
        read(folder)
    found = read(folder, splits="none")
    assert (found.classes, found_in(found)) == (("bus", "car", "train"), {"train": expected(3)})


def test_a_folder_of_predictions_beside_classes_is_a_question(tmp_path: Path) -> None:
    folder = pictures.write_folder(tmp_path, coded_files({"": 3}, ("cat", "dog", "unlabeled")))
    with pytest.raises(DataError, match=r"holds unlabeled beside class folders.*remove it, or .* --splits none"):
        read(folder)
    assert read(folder, splits="none").classes == ("cat", "dog", "unlabeled")


@pytest.mark.parametrize("form", ["folder", "zip", "a zip in a folder"])
def test_the_settings_say_which_folders_are_splits(form: str, tmp_path: Path) -> None:
    files = {**coded_files({"part_a": 4, "part_b": 1, "part_c": 2}), "more/cat/0.png": IMAGE, "part_a/notes.txt": b"x"}
    source = pictures.write_folder(tmp_path / "made", files) if form == "folder" else tmp_path
    if form != "folder":
        packed = pictures.write_zip(tmp_path / "made.zip", files)
        source = packed if form == "zip" else tmp_path
    found = read(source, splits={"train": "part_a", "val": "part_b", "test": "part_c"})
    assert found_in(found) == {"train": expected(4), "val": expected(1, 1), "test": expected(2, 2)}
    assert found.left_out == {"more/cat/0.png": splits.NOT_NAMED, "part_a/notes.txt": contents.BY_NAME}
    assert found.notes == ("folders of splits: train is part_a, val is part_b, test is part_c",)
    found = read(source, splits="none")
    assert found.classes == ("more", "part_a", "part_b", "part_c")
    assert found.splits["train"].labels.bincount().tolist() == [1, 12, 3, 6]


def test_a_folder_beside_the_splits_is_a_question(tmp_path: Path) -> None:
    folder = pictures.write_folder(tmp_path, coded_files({"train": 3, "more": 1}))
    with pytest.raises(
        DataError, match=r"more/cat/0\.png .* lies in no class folder: .* name the folders of splits with --splits"
    ):
        read(folder)
    found = read(folder, splits={"train": "train"})
    assert found_in(found) == {"train": expected(3)}
    assert set(found.left_out.values()) == {splits.NOT_NAMED}
    assert found_in(read(folder, splits={"train": "train", "val": "more"})) == {"train": expected(3), "val": expected(1, 1)}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"train": "part_x"}, r"the setting splits names 'part_x', no folder with images of .*\(part_a, part_b\)"),
        ({"train": "part_a", "test": "part_a"}, "names part_a for two splits: name a folder of its own for each"),
        ({"train": "part_a", "test": "part_a/cat"}, "names part_a/cat for two splits"),
        ({"train": "../part_a"}, "names '../part_a', no folder"),
        ({"train": "."}, r"names '\.', no folder"),
    ],
)
def test_settings_that_name_folders_in_vain(told: dict[str, str], words: str, tmp_path: Path) -> None:
    folder = pictures.write_folder(tmp_path, coded_files({"part_a": 2, "part_b": 2}))
    with pytest.raises(DataError, match=rf"^prepare\.mine: .*{words}"):
        read(folder, splits=told)


def test_splits_are_for_image_folders(tmp_path: Path) -> None:
    path = pictures.write_npz(tmp_path / "made.npz", pictures.splits())
    for source in (path, "digits"):
        with pytest.raises(DataError, match=r"the setting splits is for image folders.* take it out"):
            read(source, splits="none")


def params_with(valid_params: dict[str, object], **own: object) -> Params:
    return parse({**valid_params, "prepare": {"digits": {"source": "digits", **own}}})


def test_records_name_the_setting_only_where_it_says_something(valid_params: dict[str, object]) -> None:
    """So that what was made before there was such a setting stays valid."""
    plain = records.prepared_record(resolved.data_set(params_with(valid_params), "digits"), "x").settings["prepare"]
    assert "splits" not in plain
    told = records.prepared_record(resolved.data_set(params_with(valid_params, splits={"train": "a"}), "digits"), "x").settings[
        "prepare"
    ]
    assert told == {**plain, "splits": {"train": "a"}}
    for wrong in ("some", {"test": "a"}, {"train": 1}, {"training": "a"}, ["train"]):
        with pytest.raises(ParamsError, match=r"prepare\.digits\.splits: "):
            params_with(valid_params, splits=wrong)


# -- litter, and files that are no images


def test_litter_is_left_out_and_counted(tmp_path: Path) -> None:
    files = coded_files({"": 3})
    litter = {"@eaDir/cat/0.png": LITTERED, "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg": LITTERED, "#recycle/old/0.png": LITTERED}
    litter |= {"$RECYCLE.BIN/S-1/1.png": LITTERED, "@Recycle/1.png": LITTERED, "System Volume Information/x": LITTERED}
    litter |= {"lost+found/#12": LITTERED, "dog/__pycache__/x.pyc": LITTERED, "emu/Thumbs.db": LITTERED}
    litter |= {".DS_Store": HIDDEN, "cat/.ipynb_checkpoints/0-checkpoint.png": HIDDEN, ".git/objects/aa/bb": HIDDEN}
    plain = read(pictures.write_folder(tmp_path / "plain", files))
    folder = pictures.write_folder(tmp_path / "made", {**files, **dict.fromkeys(litter, IMAGE)})
    for source in (folder, pictures.write_zip(tmp_path / "made.zip", {**files, **dict.fromkeys(litter, IMAGE)})):
        found = read(source)
        assert (found.classes, found.sha256(), dict(found.left_out)) == (CLASSES, plain.sha256(), litter)


def test_what_may_not_be_looked_into_is_left_out_where_it_is_litter() -> None:
    with tempfile.TemporaryDirectory() as name:  # where others may look, unlike pytest's folders
        folder = pictures.write_folder(Path(name), {**coded_files({"": 3}), "lost+found/x": b""})
        folder.chmod(0o755)
        (folder / "lost+found").chmod(0)
        before = os.geteuid()
        os.seteuid(before or 65534)  # the superuser may read everything
        try:
            assert read(folder).left_out == {"lost+found/": LITTERED}
        finally:
            os.seteuid(before)
            (folder / "lost+found").chmod(0o755)


def test_pipes_and_links_to_them_are_not_opened(tmp_path: Path) -> None:
    folder = pictures.write_folder(tmp_path, coded_files({"": 3}))
    os.mkfifo(folder / "cat/pipe.png")
    (folder / "dog/link.png").symlink_to(folder / "cat/pipe.png")
    assert read(folder).left_out == dict.fromkeys(("cat/pipe.png", "dog/link.png"), NO_FILE)


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_every_file_is_read_or_left_out_with_a_reason(form: str, tmp_path: Path) -> None:
    others = {"cat/notes.txt": contents.BY_NAME, "labels.csv": contents.BY_NAME, "dog/a.zip": contents.BY_NAME}
    others |= {"README": contents.BY_CONTENT, "emu/0.weights": contents.BY_CONTENT, "emu/x.annotation.old": contents.BY_CONTENT}
    files = {**coded_files({"": 3}), **dict.fromkeys(others, b"P7 is no image, nor BM, " * 300)}
    write = {"folder": pictures.write_folder, "zip": pictures.write_zip, "tar": pictures.write_tar}[form]
    found = read(write(tmp_path / f"made.{form}", files))
    assert found_in(found) == {"train": expected(3)}
    assert found.left_out == others


def test_a_class_without_images_says_what_it_holds(tmp_path: Path) -> None:
    folder = pictures.write_folder(tmp_path, {**coded_files({"": 2}), "fox/1.txt": b"", "fox/2.txt": b"", "fox/.x": b""})
    words = r"the class folder fox in .* holds no image, but 2 files \(no image by name\) and 1 file \(hidden\): add some"
    with pytest.raises(DataError, match=words):
        read(folder)


def test_many_files_are_not_opened_to_know_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names tell; of the others no more than the first bytes are read."""
    folder = pictures.write_folder(tmp_path, {**coded_files({"": 3}), "cat/0.txt": b"x", "cat/big": b"x" * 10**6})
    opened = []
    streams = Folder.streams

    def watched(self: Folder, files: list[str], most: int = -1) -> object:
        opened.append((list(files), most))
        return streams(self, files, most)

    monkeypatch.setattr(Folder, "streams", watched)
    contents.of(Folder(folder))
    assert opened == [(["cat/big"], 4096)]


# -- names that are no text

LATIN = "caf\udce9"  # as Python has the bytes b"caf\xe9"


@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
@pytest.mark.parametrize("name", [LATIN, "two\nlines", "a\x1b[31mred"])
def test_class_names_that_are_no_text_are_refused(form: str, name: str, tmp_path: Path) -> None:
    files = coded_files({"": 3}, ("bar", name))
    path = tmp_path / f"made.{form}"
    if form == "zip":
        write_unix_zip(path, files)
    else:
        _ = pictures.write_folder(path, files) if form == "folder" else pictures.write_tar(path, files)
    with pytest.raises(DataError) as caught:
        read(path)
    sentence = str(caught.value)
    assert sentence == f"prepare.mine: the class name '{shown(name)}' is no text (UTF-8 without control characters): rename it"
    assert sentence.isprintable()


def write_unix_zip(path: Path, files: dict[str, bytes]) -> Path:
    """As zip on Unix writes names: the file system's bytes, without a word of what they are."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            info = _Raw(os.fsencode(name).decode("cp437"))
            info.create_system = 3
            archive.writestr(info, data)
    return path


class _Raw(zipfile.ZipInfo):
    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802, its name
        return self.filename.encode("cp437"), self.flag_bits


def test_names_in_archives_that_do_not_say_what_text_they_are(tmp_path: Path) -> None:
    """UTF-8 of macOS; code page 437 of Windows."""
    files = coded_files({"": 3}, ("bar", "café"))
    assert read(write_unix_zip(tmp_path / "made.zip", files)).classes == ("bar", "café")
    with zipfile.ZipFile(tmp_path / "dos.zip", "w") as archive:
        for name, data in files.items():
            info = _Raw(name)
            info.create_system = 0
            archive.writestr(info, data)
    assert read(tmp_path / "dos.zip").classes == ("bar", "café")


@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
def test_image_names_that_are_no_text_are_read_and_shown_escaped(form: str, tmp_path: Path) -> None:
    files = {
        **coded_files({"": 3}),
        f"cat/{LATIN}.png": b"no image",
        f"dog/{LATIN}.txt": b"",
    }
    files[f"emu/{LATIN}.png"] = pictures.file_of(pictures.coded(2, 9))
    path = tmp_path / f"made.{form}"
    write = {"folder": pictures.write_folder, "tar": pictures.write_tar, "zip": write_unix_zip}[form]
    write(path, files)
    with pytest.raises(DataError) as caught:
        read(path)
    assert r"1 image can't be read, cat/caf\xe9.png (no image of a known format)" in str(caught.value)
    found = read(path, skip_broken=True)
    assert found.skipped == (r"cat/caf\xe9.png",)
    assert dict(found.left_out) == {r"dog/caf\xe9.txt": contents.BY_NAME}
    assert codes(found.splits["train"]) == sorted([*expected(3), (2, 9, 0)])


def test_class_names_of_other_forms_are_compared_too(tmp_path: Path) -> None:
    import numpy as np

    images, labels = pictures.splits(names=("train",))["train"]
    np.savez(tmp_path / "made.npz", x=images, y=labels, classes=np.array(["a", "b", LATIN]))
    with pytest.raises(DataError, match=r"the class name 'caf.xe9' is no text"):
        read(tmp_path / "made.npz")


def test_an_archive_names_its_members_as_they_can_be_printed(tmp_path: Path) -> None:
    path = tmp_path / "made.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(f"../{LATIN}.png")
        archive.addfile(info)
    with pytest.raises(DataError, match=r"holds '\.\./caf\\xe9\.png', a path that leads out"):
        read(path)
    assert archives.is_archive(path)


def test_an_inspection_has_all_that_is_to_be_said(tmp_path: Path) -> None:
    files = {**coded_files({"seg_train": 4, "seg_test": 1}), "seg_train/cat/9.png": b"", "notes.txt": b"", ".x": b""}
    found = inspection.inspect(dataset(pictures.write_folder(tmp_path, files)), "mine").source
    assert found.notes == ("folders of splits: train is seg_train, test is seg_test",)
    assert found.left_out == {"notes.txt": contents.BY_NAME, ".x": HIDDEN}
    assert found.broken == {"seg_train/cat/9.png": "it is empty"}
