"""A synthetic set that leaves the repository and comes back: the same pixels, and the same accuracy under any whitening."""

from __future__ import annotations

import functools
import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from src.ground.errors import UserError
from src.settings import resolved
from src.settings.params import load
from src.stages import export as exporting
from src.stages import prepare
from src.store import files, provenance, tensors
from src.store.store import read_synthetic
from src.store.values import Record, SyntheticSet
from tests import pictures, small_run
from tests.called import command
from tests.imports import ROOT
from tests.small_run import STORE

RUN = "digits-ipc1-ast"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By the kind of whitening: a folder where a small run is distilled and evaluated."""

    @functools.cache
    def found(whitening: str) -> Path:
        folder = tmp_path_factory.mktemp(whitening)
        make(folder, {"source": "digits", "whitening": whitening})
        return folder

    return found


@pytest.fixture(params=["none", "zca"])
def made(request: pytest.FixtureRequest, first: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, from whitened images or not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    shutil.copytree(first(request.param), tmp_path, dirs_exist_ok=True)
    return tmp_path


def make(folder: Path, dataset: dict[str, Any]) -> None:
    raw = small_run.params()
    raw["runtime"]["workers"] = 1
    raw["prepare"]["digits"] = dataset
    raw["evaluate"]["mtt"] = {"students": 2, "epochs": 40}
    raw["runs"] = {"one": raw["runs"]["one"]}
    with small_run.made(folder, raw):
        pass


def test_an_exported_set_scores_as_before(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("export --run one --to out", monkeypatch) == 0
    metrics = json.loads(STORE.metrics_file("one").read_text())
    card = json.loads((made / "out" / "set.json").read_text())
    assert card["accuracy"] == metrics
    before = sorted(Path("data").rglob("*"))
    capsys.readouterr()
    assert command("evaluate --run one --from out/synthetic.safetensors", monkeypatch) == 0
    mean, std = (100 * metrics[f"test_accuracy_{figure}"] for figure in ("mean", "std"))
    assert f"{mean:.1f} ± {std:.1f}" in capsys.readouterr().err
    assert sorted(Path("data").rglob("*")) == before


@pytest.mark.parametrize("made", ["none"], indirect=True)
def test_settings_that_did_not_make_the_images_are_not_stated(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Path("params.yaml").read_text(encoding="utf-8")
    raw = json.loads(settings)
    raw["prepare"]["digits"]["test_fraction"] = 0.5
    Path("params.yaml").write_text(json.dumps(raw), encoding="utf-8")
    assert command("export --run one --to out", monkeypatch) == 1
    assert "was made differently (prepare.test_fraction was 0.2, is 0.5)" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_choice_on_the_test_split_is_said(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("export --run one --to out", monkeypatch) == 0
    card = json.loads(Path("out/set.json").read_text(encoding="utf-8"))
    chosen = {**card, "evaluation": {**card["evaluation"], "score": "best_test"}}
    assert "chosen on it" in exporting.words.readme(chosen, 10, "") and "chosen on it" not in exporting.words.readme(
        card, 10, ""
    )


def test_an_export_is_whole_or_not_there(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off by Ctrl-C or by a kill, the same command begins again."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(exporting, "_card", lambda *_: {"accuracy": None})
        patched.setattr(exporting.words, "readme", _interrupted)
        exporting.run(STORE, resolved.run(load(), "one"), Path("out"))
    assert not list(Path("out").iterdir())
    killed = Path("out", f"{files.UNFILLED}abc.tmp")
    (killed / "images").mkdir(parents=True)
    assert command("export --run one --to out", monkeypatch) == 0
    found = {path.name for path in Path("out").iterdir()}
    assert found == {"synthetic.safetensors", "images", "images.png", "set.json", "README.md"}
    assert command("export --run one --to out", monkeypatch) == 1, "a folder that holds something is left alone"


def _interrupted(*_: object) -> str:
    assert list(Path("out").glob(f"{files.UNFILLED}*/set.json"))
    raise KeyboardInterrupt


def test_a_released_set_scores_on_a_fresh_clone(
    made: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing but the export and any valid params.yaml: the same accuracy, and the very images that it was made from."""
    assert command("export --run one --to data/released/one", monkeypatch) == 0
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(made / "data" / "released", clone / "data" / "released")
    shutil.copy(ROOT / "params.yaml", clone)
    monkeypatch.chdir(clone)
    metrics = json.loads((made / STORE.metrics_file("one")).read_text())
    mean, std = (100 * metrics[f"test_accuracy_{figure}"] for figure in ("mean", "std"))
    capsys.readouterr()
    shutil.copytree(clone / "data/released/one", clone / "data/released/renamed")
    for words in ("one", "one --data digits", "renamed"):
        assert command(f"evaluate --released {words}", monkeypatch) == 0
        said = capsys.readouterr().err
        assert said.count(f"{mean:.1f} ± {std:.1f}") == 2, "what was found, and what it was released with"
    assert command("evaluate --released one --networks MLP", monkeypatch) == 0
    assert "MLP" in capsys.readouterr().err
    assert f"{mean:.1f} ± {std:.1f} % on the test split" in (clone / "data/released/one/README.md").read_text(encoding="utf-8")
    other = [np.zeros((30, 8, 8), np.uint8), np.arange(30) % 10]
    np.savez(clone / "other.npz", images=other[0], labels=other[1])
    for words, sentence in (
        ("--released two", "no released set is named 'two': choose one of one, renamed"),
        ("--released one --run one", "leave out --run and --from"),
        ("--data digits", "--data belongs to --released"),
        ("--released one --data other.npz", "digits come with scikit-learn, and are read from no other place"),
    ):
        assert command(f"evaluate {words}", monkeypatch) == 1
        assert sentence in capsys.readouterr().err
    card = clone / "data" / "released" / "one" / "set.json"
    card.write_text(json.dumps({**json.loads(card.read_text(encoding="utf-8")), "accuracy": None}))
    assert command("evaluate --released one", monkeypatch) == 0
    assert "released without an accuracy" in capsys.readouterr().err
    card.write_text("{}")
    assert command("evaluate --released one", monkeypatch) == 1
    assert "set.json is damaged" in capsys.readouterr().err
    assert {path.name for path in (clone / "data").iterdir()} == {"released", "sources"}


def test_a_released_set_takes_its_images_from_any_place_in_any_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As FashionMNIST comes, without names of classes, which the digest covers; neither the card nor the store hold a place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    found = load_digits()
    images, labels = found.images.astype(np.uint8)[..., None], found.target.astype(np.int64)
    splits = {"train": (images[:1400], labels[:1400]), "test": (images[1400:], labels[1400:])}
    files = pictures.write_idx(tmp_path / "elsewhere", splits)
    arrays = {f"{axis}_{split}": array for split, pair in splits.items() for axis, array in zip("xy", pair, strict=True)}
    np.savez("other.npz", **arrays)
    np.savez("turned.npz", **arrays | {"x_test": arrays["x_test"][:, ::-1]})
    make(tmp_path, {"source": "fashion_mnist", "val_fraction": 0.2, "path": str(files)})
    assert command("export --run one --to data/released/one", monkeypatch) == 0
    assert "elsewhere" not in "".join(path.read_text() for path in Path("data/released/one").glob("*.[jm]*"))
    capsys.readouterr()
    said = set()
    shutil.copytree(files, "data/sources/fashion_mnist")
    for place in (str(files), "./elsewhere", "other.npz", "data/sources/fashion_mnist", "fashion_mnist"):
        assert command(f"evaluate --released one --data {place}", monkeypatch) == 0
        said.add("".join(line for line in capsys.readouterr().err.splitlines() if "±" in line))
    assert len(said) == 1
    for place, sentence in (
        ("turned.npz", "turned.npz has the sha256"),
        ("nowhere", "nowhere does not exist: give the path of an image folder"),
    ):
        assert command(f"evaluate --released one --data {place}", monkeypatch) == 1
        assert sentence in capsys.readouterr().err
    assert command("evaluate --released one", monkeypatch) == 0, "what is there from before is still what it was"
    (files / "train-labels-idx1-ubyte").write_bytes((files / "train-labels-idx1-ubyte").read_bytes()[:-1] + b"\x05")
    assert command(f"evaluate --released one --data {files}", monkeypatch) == 1
    assert "not prepare.digits.sha256" in capsys.readouterr().err


def test_the_tensors_are_pixels(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undistilled images are the data set's own, whatever whitening the networks saw."""
    assert command("export --run one --to out", monkeypatch) == 0
    first = STORE.load_snapshots("one").pixels[0]
    real = STORE.load_split("digits", "train").images / 16
    nearest = torch.cdist(first.flatten(1), real.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values
    assert nearest.max() < 1e-4
    pictures = sorted((made / "out" / "images").rglob("*.png"))
    assert [path.parent.name for path in pictures] == [f"{k:04d}" for k in range(10)]
    shown = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in pictures])).unsqueeze(1) / 255
    expected = read_synthetic(made / "out" / "synthetic.safetensors", "").pixels.clamp(0, 1)
    assert (shown - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_half_precision_is_half_the_size(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is read again is the same set, but for pixels that are off by half a spacing of float16 at most."""
    for words in ("--to whole", "--to half --half"):
        assert command(f"export --run one {words}", monkeypatch) == 0
    whole, half = (made / name / "synthetic.safetensors" for name in ("whole", "half"))
    assert whole.read_bytes() == STORE.synthetic_file("one").read_bytes()
    saved = whole.stat().st_size - half.stat().st_size
    assert abs(saved - read_synthetic(whole, "").pixels.numel() * 2) <= 16, "headers are padded"
    before, after = (read_synthetic(path, "") for path in (whole, half))
    assert after.pixels.dtype == torch.float32
    assert ((after.pixels - before.pixels).abs() <= before.pixels.abs() * 2**-11 + 2**-25).all()
    assert torch.equal(after.syn_lr, before.syn_lr)
    assert torch.equal(after.labels, before.labels)
    assert "float16" in json.loads((made / "half" / "set.json").read_text())["tensors"]["pixels"]
    assert tensors.differences(half, Record("synthetic set", {}), "") == tensors.differences(
        whole, Record("synthetic set", {}), ""
    )
    assert command(f"evaluate --run one --from {half}", monkeypatch) == 0
    bright = SyntheticSet(before.pixels * 1e6, before.labels, before.syn_lr)
    with pytest.raises(UserError, match="holds pixels beyond 65,504: export it without --half"):
        STORE.copy_synthetic("one", bright, made / "huge.safetensors", half=True)
    assert not (made / "huge.safetensors").exists()


def test_a_folder_with_files_is_left_alone(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (made / "mine").mkdir()
    (made / "mine" / "thesis.txt").write_text("dear")
    assert command("export --run one --to mine", monkeypatch) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in (made / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])),
        (torch.zeros(1, 1, 8, 8), torch.tensor([10])),
        (torch.zeros(1, 1, 8, 8), torch.eye(12)[:1]),
        (torch.zeros(1, 1, 8, 8), torch.eye(4)[:1]),
    ],
)
def test_another_data_sets_images_are_refused(
    pixels: torch.Tensor, labels: torch.Tensor, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    STORE.save_synthetic("other", SyntheticSet(pixels, labels, torch.tensor(0.01)), Record("synthetic set", {}))
    assert command(f"evaluate --run one --from {STORE.synthetic_file('other')}", monkeypatch) == 1
    assert "choose a run on the set's own data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("evaluate --from out.safetensors", "--from needs --run"),
        (f"evaluate --run {RUN} --from nowhere.safetensors", "nowhere.safetensors is missing"),
        (f"evaluate --run {RUN} --from params.yaml", "params.yaml is damaged or no safetensors file"),
    ],
)
def test_what_can_not_be_scored_is_a_sentence(
    words: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    prepare.run(STORE, resolved.data_set(load(), "digits"))
    assert command(words, monkeypatch) == 1
    assert sentence in capsys.readouterr().err


def test_an_artifact_is_verified(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Sound and of today's settings; of other settings, which are named; damaged; and away from its place."""
    path = STORE.synthetic_file("one")
    everything = [*Path("data").rglob("*.safetensors")]
    assert len(everything) == 4 + 2 + 2
    for one in everything:
        assert command(f"verify {one}", monkeypatch) == 0
        assert "made from the settings and inputs of now" in capsys.readouterr().err
    monkeypatch.setattr(provenance, "packages", lambda: {"python": platform.python_version()})
    assert command(f"verify {path}", monkeypatch) == 0
    said = capsys.readouterr().err
    assert "made from the settings and inputs of now" in said
    assert "Its bytes may come out differently now, as its packages" in said
    assert f"packages.torch was {torch.__version__}" in said
    assert "packages.python" not in said
    first, second = (STORE.trajectory_file("smooth", index) for index in range(2))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    assert command(f"verify {first}", monkeypatch) == 1
    assert "kind was trajectory 001, is trajectory 000" in capsys.readouterr().err
    first.write_bytes(kept)
    settings = Path("params.yaml").read_text()
    Path("params.yaml").write_text(settings.replace('"seed": 0', '"seed": 1'))
    assert command(f"verify {path}", monkeypatch) == 1
    assert "seed was 0, is 1" in capsys.readouterr().err
    Path("params.yaml").write_text(settings)
    (made / "away.safetensors").write_bytes(path.read_bytes())
    assert command("verify away.safetensors", monkeypatch) == 0
    assert "at no place of the pipeline" in capsys.readouterr().err
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1
    path.write_bytes(damaged)
    assert command(f"verify {path}", monkeypatch) == 1
    assert "checksum does not fit" in capsys.readouterr().err
