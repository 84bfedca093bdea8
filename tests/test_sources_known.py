"""Known data sets: where they are looked for, their published layouts, and what is said when they can't be had."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import shutil
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.io import savemat
from sklearn.datasets import load_digits
from torchvision import datasets

from src.ground.errors import DataError
from src.sources import downloads, imagenet, named, reading
from src.sources import published as published_sets
from src.sources.reading import Source
from tests import pictures
from tests.pictures import dataset


def read(source: str, **settings: object) -> Source:
    return reading.read(dataset(source, **settings), "mine")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, on a machine without network or data sets."""

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(named.VARIABLE, raising=False)
    monkeypatch.setattr(named, "SYSTEM", {})
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def ten_classes() -> pictures.Splits:
    rng = np.random.default_rng(1)
    labels = np.tile(np.arange(10), 3)
    return {split: (rng.integers(0, 256, (30, 5, 5, 3), dtype=np.uint8), labels) for split in ("train", "test")}


def test_digits_are_sorted_by_class() -> None:
    found, digits = read("digits"), load_digits()
    order = np.argsort(digits.target, kind="stable")
    assert (found.classes, found.pixel_max, list(found.splits)) == (tuple("0123456789"), 16, ["train"])
    assert np.array_equal(found.splits["train"].images[:, 0].numpy(), digits.images[order])
    assert found.splits["train"].labels.tolist() == digits.target[order].tolist()


def test_resized_digits_stay_within_their_levels() -> None:
    images = read("digits", size=12, channels=3).splits["train"].images
    assert images.shape == (1797, 3, 12, 12)
    assert images.max() == 16


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_and_torchvisions_layout(packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ten_classes()
    grey = {split: (images[..., :1], labels) for split, (images, labels) in made.items()}
    np.savez("made.npz", x_train=grey["train"][0], y_train=grey["train"][1], x_test=grey["test"][0], y_test=grey["test"][1])
    expected = read("./made.npz")
    for folder in ("plain", "layout/FashionMNIST/raw", "elsewhere/mnist", "data/sources/fashion_mnist"):
        pictures.write_idx(Path(folder), made, packed)
    monkeypatch.setenv(named.VARIABLE, str(tmp_path / "elsewhere"))
    found = {source: read(source) for source in ("plain", "layout", "mnist", "fashion_mnist")}
    assert found["plain"].classes == found["mnist"].classes == expected.classes
    assert found["layout"].classes == found["fashion_mnist"].classes
    assert found["layout"].classes[0] == "T-shirt/top"
    for source in found.values():
        assert torch.equal(source.splits["train"].images, expected.splits["train"].images)
        assert torch.equal(source.splits["test"].labels, expected.splits["test"].labels)


def test_a_known_name_takes_any_form_from_its_folder() -> None:
    made = pictures.splits()
    folder = Path("data/sources/cifar10")
    folder.mkdir(parents=True)
    pictures.write_npz(folder / "cifar10.npz", made)
    with pytest.raises(DataError, match=r"data/sources/cifar10 holds the classes cat, dog, emu, not those of cifar10"):
        read("cifar10")
    arrays = {f"{axis}_{split}": a for split, pair in numbered("cifar10").items() for axis, a in zip("xy", pair, strict=True)}
    np.savez(folder / "cifar10.npz", **arrays)
    assert read("cifar10").sha256() == read("cifar10", path=str(folder / "cifar10.npz")).sha256()


def numbered(name: str, count: int = 2) -> pictures.Splits:
    """So many coded images of each of a known data set's classes, by its own numbers."""
    labels = np.repeat(np.arange(len(published_sets.CLASSES[name])), count)
    images = np.zeros((len(labels), 8, 8, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = labels, np.tile(np.arange(count), len(labels) // count)
    return {"train": (images, labels), "test": (images + 100, labels)}


def write_forms(name: str) -> dict[str, Path]:
    """The same images with and without the names of their classes; the names' spelling and order differ in some."""
    made, classes = numbered(name), published_sets.CLASSES[name]
    arrays = {f"{axis}_{split}": array for split, pair in made.items() for axis, array in zip("xy", pair, strict=True)}
    np.savez("nameless.npz", **arrays)
    np.savez("texts.npz", **arrays | {key: np.array(classes)[value] for key, value in arrays.items() if key[0] == "y"})
    np.savez("names.npz", classes=np.array([f" {text.upper()}!" for text in classes]), **arrays)
    folder = {
        f"{split}/{classes[label].replace('/', '_')}/{n}.png": pictures.png(image[..., 0])
        for split, (images, labels) in made.items()
        for n, (image, label) in enumerate(zip(images, labels, strict=True))
    }
    pictures.write_folder(Path("folder"), folder)
    pictures.write_zip(Path("folder.zip"), folder)
    pictures.write_idx(Path("files"), made)
    for split, (images, labels) in made.items():
        Path("hub").mkdir(exist_ok=True)
        pq.write_table(pictures.table(images[..., 0], labels, None), f"hub/{split}.parquet")
    return {path.name: path for path in map(Path, ("folder", "folder.zip", "files", "hub", *Path().glob("*.npz")))}


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "kmnist", "imagenette", "mnist"])
def test_a_known_data_set_is_the_same_from_any_place_in_any_form(name: str) -> None:
    digests = set()
    for place in write_forms(name).values():
        for path in (place, place.absolute()):
            found = read(name, path=str(path))
            digests.add(found.sha256())
            assert found.classes == published_sets.CLASSES[name]
            for split, offset in (("train", 0), ("test", 100)):
                value = found.splits[split]
                assert (value.images[:, 0, 0, 0] - offset).tolist() == value.labels.tolist()
                assert (value.images[:, 0, 0, 1] - offset).tolist() == [0, 1] * (len(value.labels) // 2)
    assert len(digests) == 1
    own = Path("data/sources") / name
    own.parent.mkdir(parents=True)
    Path("hub").rename(own)
    assert {read(name).sha256()} == digests


def test_published_files_are_read_from_any_place() -> None:
    for folder in ("/FashionMNIST/raw", "/raw", ""):
        pictures.write_idx(Path(f"elsewhere{folder}"), numbered("fashion_mnist"))
        assert read("fashion_mnist", path="elsewhere").classes == published_sets.CLASSES["fashion_mnist"]
        shutil.rmtree("elsewhere")
    pictures.write_folder(Path("data"), tiny("train/{}", "val/{}"))
    for path in ("data", f"data/{imagenet.TINY}"):
        assert read("tiny_imagenet", path=path).classes == ("n1", "n2", "n3")


def test_another_data_set_is_not_the_known_one() -> None:
    np.savez("made.npz", x=np.zeros((12, 8, 8), np.uint8), y=np.arange(12))
    text = "made.npz holds the classes 0, 1, 2, ..., not those of cifar10 (airplane, automobile, bird, ...): name a place of"
    with pytest.raises(DataError, match=re.escape(text)):
        read("cifar10", path="made.npz")
    with pytest.raises(DataError, match="nowhere does not exist"):
        read("cifar10", path="nowhere")
    with pytest.raises(DataError, match="digits come with scikit-learn, and are read from no other place"):
        read("digits", path="made.npz")
    with pytest.raises(DataError, match=r"the setting splits is for image folders, not for made\.npz"):
        read("cifar10", path="made.npz", splits="none")


def test_images_of_your_own_may_lie_elsewhere() -> None:
    made = pictures.write_folder(Path("here"), pictures.coded_files({"part_a": 4, "part_b": 2}))
    told = {"splits": {"train": "part_a", "test": "part_b"}}
    before = read("./here", **told)
    made.rename("there")
    found = read("./here", path="there", **told)
    assert (found.sha256(), pictures.codes(found.splits["test"])) == (before.sha256(), pictures.expected(2, 1))
    with pytest.raises(DataError, match=r"the source there has the sha256 [0-9a-f]+, not prepare\.mine\.sha256"):
        read("./here", path="there", sha256="0" * 64, **told)


def test_the_classes_of_known_data_sets() -> None:
    """Those of torchvision, as far as it names them: the names of CIFAR's and STL-10's come with the files, by alphabet."""
    classes = published_sets.CLASSES
    assert {name: len(set(names)) for name, names in classes.items()} == {**dict.fromkeys(classes, 10), "cifar100": 100}
    assert list(classes["fashion_mnist"]) == datasets.FashionMNIST.classes
    assert list(classes["kmnist"]) == datasets.KMNIST.classes
    assert all(list(classes[name]) == sorted(classes[name]) for name in ("cifar10", "cifar100", "stl10"))


def test_pickles_that_are_not_the_published_ones_are_not_opened() -> None:
    folder = Path("data/sources/cifar10/cifar-10-batches-py")
    folder.mkdir(parents=True)
    for name in ("batches.meta", "test_batch", *(f"data_batch_{n}" for n in range(1, 6))):
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(DataError, match=r"prepare\.mine: .*cifar-10-batches-py.* not opened: remove the folder"):
        read("cifar10")
    assert not Path("opened").exists()


def published(folder: Path, kind: type, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Write files, and let torchvision take them for the published ones."""
    pictures.write_folder(folder, files)
    digests = {name.split("/")[-1]: hashlib.md5(content).hexdigest() for name, content in files.items()}
    if hasattr(kind, "split_list"):
        lists = {s: ["", f"{s}_32x32.mat", digests[f"{s}_32x32.mat"]] for s in ("train", "test")}
        monkeypatch.setattr(kind, "split_list", {**lists, "extra": lists["test"]})
    else:
        for name in ("train_list", "test_list"):
            monkeypatch.setattr(kind, name, [[file, digests[file]] for file, _ in getattr(kind, name) if file in digests])


def test_cifar_is_unpacked_from_the_published_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = ten_classes()["train"]
    big = np.resize(images, (30, 32, 32, 3))
    batch = pickle.dumps({"data": big.transpose(0, 3, 1, 2).reshape(30, -1), "labels": labels.tolist()})
    meta = pickle.dumps({"label_names": [f"class {n}" for n in range(10)]})
    below = datasets.CIFAR10.base_folder
    files = {f"{below}/{name}": batch for name in ("data_batch_1", "test_batch")} | {f"{below}/batches.meta": meta}
    published(Path("unpacked"), datasets.CIFAR10, files, monkeypatch)
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()})
    folder = Path("data/sources/cifar10")
    folder.mkdir(parents=True)
    archive = pictures.write_tar(folder / "cifar-10-python.tar.gz", files)
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged or not the published archive"):
        read("cifar10")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    found, order = read("cifar10"), np.argsort(labels, kind="stable")
    assert found.classes[3] == "class 3"
    assert np.array_equal(found.splits["test"].images.numpy(), big[order].transpose(0, 3, 1, 2))
    assert {path.name for path in folder.iterdir()} == {below, archive.name}
    for path in ("unpacked", f"unpacked/{below}", "cifar10"):
        assert read(path).sha256() == found.sha256()
    Path("both/cifar-100-python").mkdir(parents=True)  # of another data set, which is unpacked already
    again = pictures.write_tar(Path("both") / archive.name, files)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(again.read_bytes()).hexdigest())
    assert read("cifar10", path=str(again)).sha256() == read(str(again)).sha256() == found.sha256()
    with pytest.raises(DataError, match=r"the setting splits is for image folders, not for both/cifar-10-python\.tar\.gz"):
        read(str(again), splits="none")


def test_svhn_and_stl10_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = ten_classes()["train"]
    small, big = (np.resize(images, (30, side, side, 3)) for side in (32, 96))
    file = io.BytesIO()
    savemat(file, {"X": small.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)})
    published(Path("svhn"), datasets.SVHN, dict.fromkeys(("train_32x32.mat", "test_32x32.mat"), file.getvalue()), monkeypatch)
    below = datasets.STL10.base_folder
    binary = {"X": big.transpose(0, 3, 2, 1).tobytes(), "y": (labels + 1).astype(np.uint8).tobytes()}  # columns first, from one
    files = {f"{below}/{split}_{axis}.bin": content for split in ("train", "test") for axis, content in binary.items()}
    files |= {f"{below}/unlabeled_X.bin": b""}
    names = "\n".join(f"class {n}" for n in range(10)).encode()
    published(Path("stl"), datasets.STL10, {**files, f"{below}/class_names.txt": names}, monkeypatch)
    order = np.argsort(labels, kind="stable")
    for source, expected in (("svhn", small), ("stl", big)):
        found = read(f"./{source}")
        assert np.array_equal(found.splits["train"].images.numpy(), expected[order].transpose(0, 3, 1, 2))
        assert found.splits["test"].labels.tolist() == labels[order].tolist()


@pytest.mark.parametrize("name", ["cifar10", "mnist", "svhn", "stl10", "tiny_imagenet", "imagenette"])
def test_without_network_it_says_what_to_provide_and_where(name: str) -> None:
    with pytest.raises(DataError) as caught:
        read(name)
    sentence = str(caught.value)
    assert sentence.startswith(f"prepare.mine: {name} is not on this machine, and can't be downloaded (")
    assert "no network" in sentence
    assert f"put it into data/sources/{name}" in sentence
    assert "AST_DATA" in sentence
    assert "image folder" in sentence
    assert "\n" not in sentence
    assert not list(Path("data/sources").iterdir())


def test_a_download_with_another_digest_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import utils

    def fake(url: str, filename: str) -> None:
        Path(filename).write_bytes(b"something else")

    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(utils, "_urlretrieve", fake)
    with pytest.raises(DataError, match=r"can't be downloaded \(File not found or corrupted"):
        read("imagenette")
    assert not list(Path("data/sources").iterdir())


def test_what_a_killed_download_left_is_removed_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not another data set's, which may be filled just now."""
    base = tmp_path / "data/sources"
    pictures.write_folder(base, {".imagenette.abc.tmp/half.tgz": b"half", ".imagenette2.abc.tmp/half.tgz": b"half"})
    (base / ".imagenette.lock").touch()
    monkeypatch.setattr(downloads, "_download", lambda name, folder: (folder / "whole").touch())
    downloads.fetch("imagenette", base / "imagenette")
    assert sorted(path.name for path in base.iterdir()) == [".imagenette2.abc.tmp", "imagenette"]


def test_a_subset_of_imagenet_is_read_from_imagenets_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"licence forbids .*data/sources/imagenet, .*AST_DATA"):
        read("imagefruit")
    ids = tuple(imagenet.SUBSETS["imagefruit"])
    images, _ = pictures.splits(names=("train",))["train"]
    files = {f"train/{wnid}/{wnid}_1.JPEG": pictures.png(images[n]) for n, wnid in enumerate((*ids, "n00000001"))}
    files |= {f"val/{wnid}/ILSVRC2012_val_1.JPEG": pictures.png(images[n + 12]) for n, wnid in enumerate(ids)}
    pictures.write_folder(tmp_path / "elsewhere/imagenet", files)
    monkeypatch.setenv(named.VARIABLE, str(tmp_path / "elsewhere"))
    found = read("imagefruit")
    assert found.classes[:2] == ("pineapple", "banana")
    assert np.array_equal(found.splits["train"].images.numpy(), images[:10].transpose(0, 3, 1, 2))
    assert np.array_equal(found.splits["test"].images.numpy(), images[12:22].transpose(0, 3, 1, 2))
    (tmp_path / "elsewhere/imagenet/val" / ids[3] / "ILSVRC2012_val_1.JPEG").unlink()
    with pytest.raises(DataError, match=rf"val/{ids[3]}"):
        read("imagefruit")


def test_fast_ais_archive_is_read_where_it_lies() -> None:
    ids = tuple(imagenet.SUBSETS["imagewoof"])
    images, _ = pictures.splits(names=("train",))["train"]
    files = {
        f"imagewoof2-160/{s}/{wnid}/{wnid}_1.JPEG": pictures.png(images[n])
        for s in ("train", "val")
        for n, wnid in enumerate(ids)
    }
    Path("data/sources/imagewoof").mkdir(parents=True)
    pictures.write_tar(Path("data/sources/imagewoof/imagewoof2-160.tgz"), {**files, "imagewoof2-160/noisy_imagewoof.csv": b"x"})
    found, archive = read("imagewoof"), "data/sources/imagewoof/imagewoof2-160.tgz"
    assert read(archive).sha256() == read("imagewoof", path=archive).sha256() == found.sha256()
    assert found.classes == tuple(imagenet.SUBSETS["imagewoof"].values())
    assert np.array_equal(found.splits["test"].images.numpy(), images[:10].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("packed", [False, True])
def test_tiny_imagenet_as_published(packed: bool) -> None:
    images, _ = pictures.splits(names=("train",))["train"]
    top = imagenet.TINY
    files = {f"{top}/train/{wnid}/images/{wnid}_{n}.JPEG": pictures.png(images[n]) for n, wnid in enumerate(("n2", "n1", "n3"))}
    files |= {f"{top}/val/images/val_{n}.JPEG": pictures.png(images[n + 3]) for n in range(3)}
    files |= {f"{top}/test/images/test_0.JPEG": b"unlabelled"}
    table = "".join(f"val_{n}.JPEG\t{wnid}\t0\t0\t9\t9\n" for n, wnid in enumerate(("n3", "n1", "n2")))
    files |= {f"{top}/val/val_annotations.txt": table.encode()}
    files |= {f"{top}/words.txt": b"n1\tgoldfish, Carassius auratus\nn2\tcrane\nn3\tcrane\nn4\tother\n"}
    folder = Path("data/sources/tiny_imagenet")
    folder.mkdir(parents=True)
    _ = pictures.write_zip(folder / f"{top}.zip", files) if packed else pictures.write_folder(folder, files)
    found = read("tiny_imagenet")
    assert found.classes == ("goldfish", "crane n2", "crane n3")
    assert np.array_equal(found.splits["train"].images.numpy(), images[[1, 0, 2]].transpose(0, 3, 1, 2))
    assert np.array_equal(found.splits["test"].images.numpy(), images[[4, 5, 3]].transpose(0, 3, 1, 2))
    assert not packed or found.sha256() == read(str(folder)).sha256()
    assert not packed or found.sha256() == read("tiny_imagenet", path=str(folder / f"{top}.zip")).sha256()


def tiny(train: str, val: str) -> dict[str, bytes]:
    """Three classes of coded images in folders of such names, {} for an id; the test images have no labels."""
    files = {}
    for part, (below, count) in enumerate(((train, 4), (val, 2))):
        for label, wnid in enumerate(("n1", "n2", "n3")):
            for number in range(count):
                content = pictures.file_of(pictures.coded(label, number, part))
                files[f"{imagenet.TINY}/{below.format(wnid)}/{wnid}_{number}.JPEG"] = content
    return {**files, f"{imagenet.TINY}/test/images/test_0.JPEG": b"unlabelled", f"{imagenet.TINY}/wnids.txt": b"n1"}


@pytest.mark.parametrize("train", ["train/{}", "train/{}/images"])
@pytest.mark.parametrize("val", ["val/images/{}", "val/{}/images", "val/{}", "val/images"])
@pytest.mark.parametrize("words", [False, True])
def test_tiny_imagenet_as_code_lays_it_out(train: str, val: str, words: bool) -> None:
    files, top = tiny(train, val), imagenet.TINY
    if val == "val/images":
        table = "".join(f"{wnid}_{n}.JPEG\t{wnid}\t0\t0\t9\t9\n" for wnid in ("n1", "n2", "n3") for n in range(2))
        files[f"{top}/{imagenet.ANNOTATIONS}"] = table.encode()
    if words:
        files[f"{top}/words.txt"] = b"n1\tgoldfish, Carassius auratus\nn2\tcrane\nn3\tcrane\n"
    folder = Path("data/sources/tiny_imagenet")
    folder.mkdir(parents=True)
    pictures.write_folder(folder, files)
    pictures.write_zip(Path(f"{top}.zip"), files)
    sources = ["tiny_imagenet", str(folder), f"{folder}/{top}", f"{top}.zip", "."]
    if val == "val/images":
        pictures.write_folder(Path("renamed"), {path.removeprefix(f"{top}/"): content for path, content in files.items()})
        sources.append("renamed")
    for found in (read(source) for source in sources):
        assert found.classes == (("goldfish", "crane n2", "crane n3") if words else ("n1", "n2", "n3"))
        assert pictures.codes(found.splits["train"]) == pictures.expected(4)
        assert pictures.codes(found.splits["test"]) == pictures.expected(2, 1)
        (unlabelled,) = (path for path in found.left_out if path.endswith("test_0.JPEG"))
        assert found.left_out[unlabelled] == "without a label"
        assert len(found.left_out) == len(files) - 18


@pytest.mark.parametrize("spoil", ["no zip", "cut off", "words.txt", imagenet.ANNOTATIONS])
def test_a_damaged_archive_of_tiny_imagenet(spoil: str) -> None:
    """As a whole, or a table in it alone: pictures that are damaged are counted as in any other source."""
    top = imagenet.TINY
    tables = {f"{top}/words.txt": b"n1\tgoldfish\n" * 9, f"{top}/{imagenet.ANNOTATIONS}": b"val_0.JPEG\tn1\t0\n" * 9}
    archive = pictures.write_zip(Path(f"{top}.zip"), {**tiny("train/{}", "val/{}"), **tables})
    whole = archive.read_bytes()
    start = whole.find(f"{top}/{spoil}".encode()) + len(f"{top}/{spoil}")
    content = {"no zip": b"<html>", "cut off": whole[:-30]}.get(spoil, whole[:start] + b"\xff\xff" + whole[start + 2 :])
    archive.write_bytes(content)
    for source in ({"source": "tiny_imagenet", "path": archive.name}, {"source": archive.name}, {"source": "."}):
        with pytest.raises(
            DataError, match=rf"^prepare\.mine: {top}\.zip is damaged or no archive of its kind \(.+\): pack or"
        ):
            read(**source)


def without(files: dict[str, bytes], part: str) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if part not in path}


LACKING = {  # files of Tiny ImageNet, and what is said of them
    "no table": (tiny("train/{}", "val/images"), r"val/images/n1_0\.JPEG, but lacks val/val_annotations\.txt with its class"),
    "not in the table": (
        {**tiny("train/{}", "val/images"), f"{imagenet.TINY}/{imagenet.ANNOTATIONS}": b"n1_0.JPEG\tn1\t\n"},
        r"has .*val/images/n1_1\.JPEG without a class",
    ),
    "no val": (without(tiny("train/{}", "val/{}"), "/val/"), "has no image in val: download"),
    "no train": (without(tiny("train/{}", "val/{}"), "/train/"), "has no image in train: download"),
    "a class in val alone": (without(tiny("train/{}", "val/{}"), "train/n2"), "has the class n2 in val, but not in train"),
}  # fmt: skip


@pytest.mark.parametrize("case", LACKING)
def test_tiny_imagenet_with_something_missing(case: str) -> None:
    files, words = LACKING[case]
    pictures.write_folder(Path("made"), files)
    with pytest.raises(DataError, match=rf"^prepare\.mine: .*{words}"):
        read("made")


def test_every_subset_has_ten_classes_of_imagenet() -> None:
    assert {len(ids) for ids in imagenet.SUBSETS.values()} == {10}
    every = [wnid for ids in imagenet.SUBSETS.values() for wnid in ids]
    assert all(len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdigit() for wnid in every)
    names = {(wnid, name) for ids in imagenet.SUBSETS.values() for wnid, name in ids.items()}
    assert len({wnid for wnid, _ in names}) == len({name for _, name in names}) == len(names)


@pytest.mark.parametrize(("source", "words"), [("cifar", "cifar10, cifar100"), ("some/where", "some/where does not exist")])
def test_an_unknown_name_or_path(source: str, words: str) -> None:
    with pytest.raises(DataError, match=rf"^prepare\.mine: .*{words}.*path"):
        read(source)


def test_a_source_that_another_process_brought_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two data sets of one source are prepared side by side, and one of them comes second."""
    (tmp_path / "cifar10" / "cifar-10-batches-py").mkdir(parents=True)
    monkeypatch.setattr(downloads, "_download", lambda name, folder: pytest.fail("downloaded twice"))
    downloads.fetch("cifar10", tmp_path / "cifar10")
    assert [path.name for path in (tmp_path / "cifar10").iterdir()] == ["cifar-10-batches-py"]
