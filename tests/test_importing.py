"""Buffers and sets of other code through the command line and the pipeline's own stages."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor

from src.editing import params_edit
from src.maths import networks
from src.maths.networks import FlatNetwork, ImageShape
from src.pages.page import Accuracy
from src.settings import resolved
from src.settings.networks import ConvNet
from src.settings.params import load
from src.stages import distill, evaluate, experts, report
from src.store import files, tensors
from src.store.values import Record
from tests.called import command
from tests.small_run import STORE, made, params

SHAPE, SPEC = ImageShape(1, 8, 10), ConvNet(depth=2, width=8)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, prepared, and one baseline; whitened ones too."""
    raw = params()
    raw["prepare"]["white"] = {"source": "digits", "whitening": "zca"}
    baseline = {"dataset": "digits", "network": "D2", "experts": None, "ipc": 1, "evaluate": "mtt"}
    raw["distill"] = {"real": {"initialisation": "random", "iterations": 0}}
    raw |= {"experts": {}, "runs": {"random": {**baseline, "distill": {"method": "real"}}}}
    top = tmp_path_factory.mktemp("work")
    with made(top, raw):
        text = io.StringIO()
        YAML(typ="safe").dump({**raw, "experts": {}}, text)
        Path("params.yaml").write_text(text.getvalue(), encoding="utf-8")
    return top


@pytest.fixture
def folder(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return Path(shutil.copytree(first, tmp_path, dirs_exist_ok=True))


def snapshots(epochs: int, seed: int) -> list[list[Tensor]]:
    """A trajectory as MTT's buffer.py writes it: a list of parameters for each epoch."""
    module, draws = networks.build(SPEC, SHAPE, torch.Generator().manual_seed(seed)), torch.Generator().manual_seed(seed)
    parameters = [p.detach().clone() for p in module.parameters()]
    found = [parameters]
    for _ in range(epochs):
        parameters = [p + 0.01 * torch.randn(p.shape, generator=draws) for p in parameters]
        found.append(parameters)
    return found


def write_buffer(folder: Path, count: int = 3, epochs: int = 4) -> None:
    folder.mkdir()
    trajectories = [snapshots(epochs, seed) for seed in range(count)]
    torch.save(trajectories[:2], folder / "replay_buffer_0.pt")
    torch.save(trajectories[2:], folder / "replay_buffer_1.pt")


def test_a_buffer_of_other_code_is_matched(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_buffer(folder / "theirs")
    assert command("import experts theirs --name mtt --dataset digits", monkeypatch) == 0
    shown = capsys.readouterr()
    assert "mtt: 3 trajectories of 4 epochs, of D2; added to params.yaml: experts.mtt" in shown.err
    assert shown.out == "next: dvc repro experts@mtt\n"
    buffer = resolved.buffer(load(), "mtt")
    assert (buffer.settings.count, buffer.settings.epochs, buffer.spec) == (3, 4, SPEC)
    for index in range(3):
        expected = torch.stack([torch.cat([p.reshape(-1) for p in one]) for one in snapshots(4, index)])
        assert torch.equal(STORE.read_snapshots("mtt", index, 0, 5), expected)
    before = {path: path.read_bytes() for path in STORE.trajectories_folder("mtt").iterdir()}
    experts.run(STORE, buffer)
    assert {path: path.read_bytes() for path in STORE.trajectories_folder("mtt").iterdir()} == before
    rows = files.read_numbers(STORE.expert_curves_file("mtt"), ("expert", "epoch", "val_accuracy", "parameter_step"), "")
    assert len(rows) == 12
    network, theta = FlatNetwork(networks.build(SPEC, SHAPE, torch.Generator())), STORE.read_snapshots("mtt", 1, 2, 3)[0]
    images, labels = STORE.load_inputs("digits", "val")
    accuracy = (network(theta, images).argmax(dim=1) == labels).double().mean().item()
    assert rows[5]["val_accuracy"] == pytest.approx(accuracy)
    run = {"dataset": "digits", "network": "D2", "experts": "mtt", "ipc": 1, "evaluate": "mtt"}
    method = {"method": {"initialisation": "random", "iterations": 2, "syn_steps": 2}}
    params_edit.add({"distill": method, "runs": {"new": {**run, "distill": {"method": "method"}}}})
    one = resolved.run(load(), "new")
    distill.run(STORE, one)
    evaluate.run(STORE, one)
    report.run(STORE, resolved.pipeline(load()))


def test_another_buffer_under_its_name_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_buffer(folder / "theirs")
    assert command("import experts theirs --name mtt --dataset digits --count 2", monkeypatch) == 0
    assert command("import experts theirs --name mtt --dataset digits", monkeypatch) == 1
    assert "params.yaml has other settings at experts.mtt (count is 2, would be 3" in capsys.readouterr().err
    one, other = (STORE.trajectory_file("mtt", index) for index in range(2))
    kept = one.read_bytes()
    tensors.save(one, {"theta": STORE.read_snapshots("mtt", 0, 0, 5) + 1}, Record(**tensors.record_of(one, "")))
    assert command("experts --experts mtt", monkeypatch) == 1
    assert "the trajectories of mtt are not those that experts.mtt.imported names: they are imported" in capsys.readouterr().err
    other.unlink()
    assert command("import experts theirs --name mtt --dataset digits --count 2", monkeypatch) == 0, "brings them again"
    assert "params.yaml has all of it already" in capsys.readouterr().err
    assert one.read_bytes() == kept
    assert command("experts --experts mtt", monkeypatch) == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("theirs --name mtt --dataset nothing", "no data set is named 'nothing'"),
        ("theirs --name mtt --dataset digits --network other", "no network is named 'other'"),
        ("theirs --name mtt --dataset digits --count 4", "the buffer holds 3 trajectories, fewer than the 4 of --count"),
        ("nothing --name mtt --dataset digits", "nothing does not exist: give a folder of replay_buffer_*.pt files"),
        ("theirs --name true --dataset digits", "'true' can't be a name"),
    ],
)
def test_what_can_not_be_brought_is_a_sentence(
    words: str, sentence: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_buffer(folder / "theirs")
    before = Path("params.yaml").read_bytes()
    assert command(f"import experts {words}", monkeypatch) != 0
    assert sentence in capsys.readouterr().err
    assert Path("params.yaml").read_bytes() == before
    assert not STORE.trajectories_folder("mtt").exists()


@pytest.mark.parametrize(("dataset", "space"), [("digits", "normalised"), ("white", "whitened"), ("digits", "pixels")])
def test_a_set_of_other_code_is_scored(
    dataset: str, space: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = STORE.load_synthetic("random")
    own = STORE.load_space(dataset)
    images = real.pixels if space == "pixels" else own.normalise(real.pixels)
    torch.save(images, "images_best.pt")
    torch.save(real.labels, "labels_best.pt")
    words = f"images_best.pt --name theirs --dataset {dataset} --network D2 --evaluate mtt --space {space} --syn-lr 0.01"
    assert command(f"import synthetic {words}", monkeypatch) == 0, capsys.readouterr().err
    assert "theirs: 10 images, syn_lr 0.01; added to params.yaml: distill.imported, runs.theirs" in capsys.readouterr().err
    one = resolved.run(load(), "theirs")
    distill.run(STORE, one)
    found = STORE.load_synthetic("theirs")
    torch.testing.assert_close(found.pixels, real.pixels, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.labels, real.labels)
    if space == "pixels":
        assert torch.equal(found.pixels, real.pixels)
    evaluate.run(STORE, one)
    theirs, ours = (files.read_json(STORE.metrics_file(name), "") for name in ("theirs", "random"))
    if dataset == "digits":
        score = Accuracy(ours["test_accuracy_mean"], ours["test_accuracy_std"])
        assert theirs["test_accuracy_mean"] == pytest.approx(score.mean, abs=max(2 * score.std, 0.02))
    report.run(STORE, resolved.pipeline(load()))


def test_soft_labels_are_learned_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = STORE.load_synthetic("random")
    soft = 0.9 * torch.nn.functional.one_hot(real.labels, 10).float() + 0.01
    torch.save({"images": real.pixels, "labels": soft}, "set.pt")
    words = "set.pt --name soft --dataset digits --network D2 --evaluate mtt --labels probabilities --syn-lr 0.01"
    assert command(f"import synthetic {words}", monkeypatch) == 0
    one = resolved.run(load(), "soft")
    distill.run(STORE, one)
    torch.testing.assert_close(STORE.load_synthetic("soft").labels, soft)
    evaluate.run(STORE, one)
    report.run(STORE, resolved.pipeline(load()))


def test_a_set_that_was_changed_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"images": STORE.load_synthetic("random").pixels, "labels": torch.arange(10)}, "set.pt")
    words = "set.pt --name mine --dataset digits --network D2 --evaluate mtt --syn-lr 0.02"
    assert command(f"import synthetic {words}", monkeypatch) == 0
    STORE.synthetic_file("random").replace(STORE.imported_file("mine"))
    assert command("distill --run mine", monkeypatch) == 1
    assert "data/imported/mine.safetensors is not the set that runs.mine.distill.given names" in capsys.readouterr().err
    assert command(f"import synthetic {words}", monkeypatch) == 0, "brings it again"
    assert command("distill --run mine", monkeypatch) == 0
    assert command(f"import synthetic {words.replace('mine', 'next')} --space normalised", monkeypatch) == 1
    assert "runs" in Path("params.yaml").read_text(encoding="utf-8")
    assert "next" not in load().runs
