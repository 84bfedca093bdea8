"""`init`: what it says of a folder of images and adds to params.yaml, and that it adds nothing where something is wrong."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.settings.params import load
from src.stages import init
from tests import pictures
from tests.called import command
from tests.imports import ROOT
from tests.small_run import STORE

COLOUR = (200, 30, 30)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with nothing but params.yaml."""
    top = tmp_path / "repository"
    top.mkdir()
    monkeypatch.chdir(top)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copy(ROOT / "params.yaml", top)
    return top


def write_images(top: Path, counts: dict[str, int], size: tuple[int, int] = (20, 16)) -> Path:
    """Folders of classes with so many noisy PNG images."""
    draws = np.random.default_rng(0)
    for name, count in counts.items():
        (top / name).mkdir(parents=True, exist_ok=True)
        for place in range(count):
            pixels = draws.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(top / name / f"{place}.png")
    return top


def refused(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with a sentence and write nothing; returns the sentence."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert command(words, monkeypatch) == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_a_folder_becomes_a_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(Path("images/flowers"), {"daisy": 12, "rose": 10})
    before = Path("params.yaml").read_text(encoding="utf-8")
    assert command("init --data ./images/flowers/ --name flowers --size 16 --ipc 2", monkeypatch) == 0
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("daisy", "rose", "12", "10", "22", "20x16", "2 classes"))
    assert "next: dvc repro evaluate@flowers-ipc2-ast" in shown
    params = load()
    dataset, run = params.prepare["flowers"], params.runs["flowers-ipc2-ast"]
    assert (dataset.source, dataset.size, dataset.skip_broken) == ("images/flowers", 16, False)
    assert dataset.sha256 is not None
    assert (run.dataset, run.network, run.experts, run.ipc) == ("flowers", "ConvNetD3W128", "flowers-smooth", 2)
    experts = params.experts["flowers-smooth"]
    assert (experts.count, experts.lr, experts.gradient_penalty, experts.batch_size) == (10, 0.003, 2.0, 16)
    assert params.distillations["flowers-ipc2-ast"].initialisation == "representative"
    text = Path("params.yaml").read_text(encoding="utf-8")
    assert set(before.splitlines()) <= set(text.splitlines())
    assert "# AST parts 1 and 2" in text


def test_the_digest_is_that_of_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    """What init writes is what prepare checks."""
    from src.sources import reading

    write_images(Path("images"), {"a": 6, "b": 6})
    assert command("init --data images --name own --size 8", monkeypatch) == 0
    settings = load().prepare["own"]
    assert reading.read(settings, "own").sha256() == settings.sha256


def test_a_second_run_shares_what_is_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(Path("images"), {"a": 10, "b": 10})
    assert command("init --data images --name own --size 16", monkeypatch) == 0
    tuned = Path("params.yaml").read_text(encoding="utf-8").replace("lr: 0.003", "lr: 0.004")
    Path("params.yaml").write_text(tuned, encoding="utf-8")
    capsys.readouterr()
    assert command("init --data images --name own --size 16 --ipc 3", monkeypatch) == 0
    assert "added to params.yaml: runs.own-ipc3-ast\n" in capsys.readouterr().out
    assert load().experts["own-smooth"].lr == 0.004
    assert command("init --data images --name own --size 16", monkeypatch) == 0
    assert "has all of own-ipc1-ast already" in capsys.readouterr().out


def test_a_path_outside_stays_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", {"a": 6, "b": 6})
    assert command("init --data ../images --name near --size 16", monkeypatch) == 0
    assert command(f"init --data {tmp_path}/images --name far --size 16", monkeypatch) == 0
    assert load().prepare["near"].source == "../images"
    assert load().prepare["far"].source == f"{tmp_path}/images"
    assert load().prepare["near"].sha256 == load().prepare["far"].sha256


def test_changed_images_need_update(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = "init --data images --name own --size 16"
    write_images(Path("images"), {"a": 10, "b": 10})
    assert command(words, monkeypatch) == 0
    before = load().prepare["own"].sha256
    text = Path("params.yaml").read_text(encoding="utf-8")
    Image.new("RGB", (16, 16), COLOUR).save("images/a/3.png")
    capsys.readouterr()
    assert "add --update to take them" in refused(words, monkeypatch, capsys)
    assert command(f"{words} --update", monkeypatch) == 0
    after = load().prepare["own"].sha256
    assert after != before
    assert Path("params.yaml").read_text(encoding="utf-8") == text.replace(str(before), str(after))


def test_broken_images(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = "init --data images --name own --size 16"
    write_images(Path("images"), {"a": 10, "b": 10})
    Path("images/a/3.png").write_bytes(b"no image")
    error = refused(words, monkeypatch, capsys)
    assert "3.png" in error
    assert "--skip-broken" in error
    assert command(f"{words} --skip-broken", monkeypatch) == 0
    assert load().prepare["own"].skip_broken
    capsys.readouterr()
    write_images(Path("images"), {"a": 10})
    assert command("init --data images --name whole --size 16", monkeypatch) == 0
    Path("images/a/3.png").write_bytes(b"no image")
    error = refused("init --data images --name whole --size 16 --skip-broken --update", monkeypatch, capsys)
    assert "set prepare.whole.skip_broken: true there" in error


def test_a_class_below_ipc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(Path("images"), {"many": 20, "few": 5})
    error = refused("init --data images --name own --size 16 --ipc 4", monkeypatch, capsys)
    assert "the class 'few' keeps 3 of its 5 images for training, fewer than 4 per class" in error
    assert command("init --data images --name own --size 16 --ipc 3", monkeypatch) == 0


def test_splits_of_the_source_are_kept_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        write_images(Path("images") / split, {"a": 5, "b": 5})
    assert "keeps 4 of its 5" in refused("init --data images --name own --size 16 --ipc 5", monkeypatch, capsys)
    assert command("init --data images --name own --size 16 --ipc 4", monkeypatch) == 0
    text = Path("params.yaml").read_text(encoding="utf-8").split("  own:\n")[1].split("networks:")[0]
    assert "val_fraction: 0.2" in text
    assert "test_fraction" not in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("init --data nowhere --name own --size 16", "nowhere"),
        ("init --data images --name own! --size 16", "'own!' can't be a name: take letters"),
        ("init --data images --name own-0.5 --size 16", "'own-0.5' can't be a name: take letters"),
        ("init --data digits --name digits --size 16", "another prepare.digits, with source digits and size null: take"),
    ],
)
def test_what_is_wrong_is_a_sentence(
    words: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refused(words, monkeypatch, capsys)


def test_a_folder_named_as_a_known_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(Path("mnist"), {"a": 6, "b": 6})
    assert command("init --data ./mnist --name own --size 16", monkeypatch) == 0
    assert load().prepare["own"].source == "./mnist"


def test_the_network_follows_the_size() -> None:
    depths = {8: 2, 15: 2, 16: 3, 28: 3, 32: 3, 48: 3, 64: 4, 96: 5, 128: 5, 224: 6, 256: 6}
    assert {size: init._network(size) for size in depths} == {size: f"ConvNetD{depth}W128" for size, depth in depths.items()}


@pytest.mark.parametrize(
    ("images", "rates"),
    [
        (45_000, (2, 0.01, 1e-7)),  # as MTT has them on CIFAR-10
        (57, (5, 0.003, 9e-9)),  # 4 steps an epoch: five epochs, and a step size with which 20 steps go as far
        (10, (10, 0.0015, 2e-9)),
    ],
)
def test_rates_follow_the_way_of_the_experts(images: int, rates: tuple[int, float, float]) -> None:
    found = init._rates(images)
    assert (found["expert_epochs"], found["lr_init"], found["lr_lr"]) == rates
    last = init.FIRST_RUN["max_start_epoch"] - 1 + found["expert_epochs"]
    assert last <= init.EXPERTS["epochs"]


def test_the_batch_follows_the_images() -> None:
    assert [init._batch(images) for images in (10, 512, 1077, 5000, 50_000)] == [16, 32, 64, 256, 256]


def write_coded(top: Path, parts: dict[str, int]) -> Path:
    return pictures.write_folder(top, pictures.coded_files(parts))


def prepared(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run prepare, and compare the labels of all splits with the images; returns what was said."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["src.cli", "prepare", "--dataset", name])
    assert command(f"prepare --dataset {name}", monkeypatch) == 0
    for split in ("train", "val", "test"):
        pictures.codes(STORE.load_split(name, split))
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "test"), [("Training", "Testing"), ("seg_train", "seg_test"), ("train_images", "test_images")]
)
def test_split_folders_do_not_become_classes(
    train: str, test: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_coded(Path("images"), {train: 12, test: 4})
    assert command("init --data images --name own --size 8", monkeypatch) == 0
    note = f"folders of splits: train is {train}, test is {test}"
    assert note in capsys.readouterr().out
    assert f"own: {note}" in prepared("own", capsys, monkeypatch)
    assert pictures.codes(STORE.load_split("own", "test")) == pictures.expected(4, 1)
    counts = STORE.load_statistics("own").counts
    assert counts["train"].keys() == set(pictures.CLASSES)
    assert sum(sum(counts[split].values()) for split in ("train", "val")) == 36
    assert load().prepare["own"].splits is None


def test_a_doubt_is_answered_by_an_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_coded(Path("images"), {"part_a": 12, "part_b": 4})
    words = "init --data images --name own --size 8"
    error = refused(words, monkeypatch, capsys)
    assert "--splits train=part_a,test=part_b" in error
    assert "--splits none" in error
    for wrong in ("train", "test=part_b", "train=part_a,test=part_x", "train=part_a,train=part_b", "nothing", ""):
        assert "splits" in refused(f"{words} --splits={wrong}", monkeypatch, capsys)
    assert command(f"{words} --splits train=part_a,test=part_b", monkeypatch) == 0
    assert load().prepare["own"].splits == {"train": "part_a", "test": "part_b"}
    prepared("own", capsys, monkeypatch)
    assert pictures.codes(STORE.load_split("own", "test")) == pictures.expected(4, 1)
    assert command(f"{words} --ipc 2", monkeypatch) == 0  # by what params.yaml says
    assert 'prepare.own with splits {"train": "part_a", "test": "part_b"}: set prepare.own.splits: none there' in refused(
        f"{words} --splits none", monkeypatch, capsys
    )
    assert command("init --data images --name parts --size 8 --splits none", monkeypatch) == 0
    assert load().prepare["parts"].splits == "none"
    assert command("prepare --dataset parts", monkeypatch) == 0
    assert STORE.load_statistics("parts").classes == ("part_a", "part_b")


def test_all_that_is_left_out_is_counted_and_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_coded(Path("images"), {"": 10})
    odd = {"cat/notes.txt": b"", "cat/a.csv": b"", "dog/b.csv": b"", "emu/c.csv": b"", ".DS_Store": b"", "emu/readme": b"x"}
    odd |= {"@eaDir/cat/0.png": b"", "cat/10.heic": b"x", "cat/11.png": b"", "dog/12.png": b"x"}
    pictures.write_folder(folder, odd)
    words = "init --data images --name own --size 8"
    broken = (
        "3 images can't be read, cat/10.heic (HEIC, which is not decoded here: convert it to PNG or JPEG), "
        "cat/11.png (it is empty), dog/12.png (no image of a known format)"
    )
    assert broken in refused(words, monkeypatch, capsys)
    assert command(f"{words} --skip-broken", monkeypatch) == 0
    shown = capsys.readouterr().out
    lines = [
        "left out: 4 files (no image by name): cat/a.csv, cat/notes.txt, dog/b.csv, ...",
        "left out: 1 file (hidden): .DS_Store",
        "left out: 1 file (no image of a known format): emu/readme",
        "left out: 1 file (left behind by a file server or a tool): @eaDir/cat/0.png",
        f"left out: {broken.replace(' can', ' that can')}",
    ]
    assert all(f"{line}\n" in shown for line in lines)
    said = prepared("own", capsys, monkeypatch)
    assert all(f"own: {line}\n" in said for line in lines)
    assert STORE.load_statistics("own").skipped == ("cat/10.heic", "cat/11.png", "dog/12.png")


@pytest.mark.parametrize("packed", [False, True])
def test_names_that_are_no_text_are_refused_before_anything_is_made(
    packed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = pictures.coded_files({"": 10}, ("bar", "caf\udce9"))
    source = pictures.write_tar(Path("own.tar"), files) if packed else pictures.write_folder(Path("images"), files)
    sentence = r"the class name 'caf\xe9' is no text (UTF-8 without control characters): rename it"
    assert sentence in refused(f"init --data {source} --name own --size 8", monkeypatch, capsys)
    Path("images/caf\udce9").rename("caf\udce9") if not packed else Path("own.tar").rename("caf\udce9.tar")
    source = "caf\udce9" if not packed else "caf\udce9.tar"
    error = refused(f"init --data {source} --name own --size 8", monkeypatch, capsys)
    assert rf"the path {source.replace(chr(0xDCE9), chr(92) + 'xe9')} is no text that params.yaml can hold" in error


def test_image_names_that_are_no_text_go_through_prepare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_coded(Path("images"), {"": 10})
    pictures.write_folder(folder, {"cat/\udce9.png": b"x", "dog/\udce9.txt": b"", "dog/a\n.txt": b""})
    assert command("init --data images --name own --size 8 --skip-broken", monkeypatch) == 0
    said = prepared("own", capsys, monkeypatch)
    assert r"cat/\xe9.png (no image of a known format)" in said
    assert r"dog/a\n.txt, dog/\xe9.txt" in said
    assert STORE.load_statistics("own").skipped == (r"cat/\xe9.png",)


def test_a_known_data_set_from_another_place_is_the_same_artifact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 6)
    images = np.zeros((60, 8, 8), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = labels, np.arange(60)
    for place in ("here", "there"):
        Path(place).mkdir()
        np.savez(f"{place}/made.npz", x=images, y=labels)
    words = "init --data cifar10 --name own --size 8"
    assert command(f"{words} --path here/made.npz", monkeypatch) == 0
    assert (load().prepare["own"].source, load().prepare["own"].path) == ("cifar10", "here/made.npz")
    assert command("prepare --dataset own", monkeypatch) == 0
    made = {path.name: path.read_bytes() for path in Path("data/prepare/own").iterdir()}
    assert STORE.load_statistics("own").classes[9] == "truck"
    train = STORE.load_split("own", "train")
    assert train.images[:, 0, 0, 0].tolist() == train.labels.tolist()
    assert "prepare.own with path here/made.npz: set prepare.own.path: there/made.npz there" in refused(
        f"{words} --path there/made.npz", monkeypatch, capsys
    )
    shutil.rmtree("here")
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("here/made.npz", str(Path("there/made.npz").absolute())), encoding="utf-8")
    assert command("prepare --dataset own", monkeypatch) == 0
    assert {path.name: path.read_bytes() for path in Path("data/prepare/own").iterdir()} == made
    assert all(b"made.npz" not in content for content in made.values())
