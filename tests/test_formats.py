"""Synthetic sets in the forms that other code takes: they come back as they went, and the script beside them trains on them."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch import Tensor

from src.exchange import scripts, writing
from src.exchange.exported import Exported
from src.exchange.templates import read_ddranking, read_huggingface, read_images, read_pt, read_safetensors, train_on_it
from src.ground.errors import ArtifactError, UserError
from src.maths import augmentation, networks, pixels
from src.maths.networks import ImageShape, flatten
from src.settings.networks import MLP, ConvNet, Network
from src.settings.protocols import Protocol
from src.store.store import read_synthetic

READERS = {
    "safetensors": read_safetensors.read,
    "images": read_images.read,
    "pt": read_pt.read,
    "huggingface": read_huggingface.read,
    "ddranking": read_ddranking.read,
}
LOSSLESS = ("safetensors", "pt", "huggingface", "ddranking")
NAMES = ("yes", "no: none", "Ångström 'x'", *(f"c{k}" for k in range(7)))  # of which YAML could make something else
ANY = 3e-6  # rounding of a normalisation and its way back


def made(soft: bool = False, whitened: bool = False, channels: int = 3, size: int = 32, **changed: Any) -> Exported:
    """Two noisy images of each of ten classes, whose pixels leave [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat(2)
    if soft:
        labels = torch.nn.functional.one_hot(labels, 10) * 0.9
        labels[:, 3] += 0.1
    real = (torch.rand(40, channels, size, size, generator=generator) * 255).to(torch.uint8)
    facts: dict[str, Any] = {
        "name": "mine",
        "pixels": torch.randn(20, channels, size, size, generator=generator) * 0.6 + 0.5,
        "labels": labels,
        "syn_lr": torch.tensor(0.02).item(),
        "classes": NAMES,
        "dataset": "cifar10",
        "mean": torch.linspace(0.4, 0.5, channels),
        "std": torch.linspace(0.2, 0.3, channels),
        "network": ConvNet(depth=3, width=8),
        "evaluation": Protocol(epochs=20, augmentation=("crop",)),
        "whitening": pixels.fit_whitening(real, 255, 0.1) if whitened else None,
        "accuracy": {f"{s}_accuracy_{figure}": 0.5 for s in ("val", "test") for figure in ("mean", "std")},
    }
    return Exported(**(facts | changed))


def small(**changed: Any) -> Exported:
    return made(size=8, dataset="any", network=ConvNet(depth=2, width=8), **changed)


# -- what is written comes back


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("form", LOSSLESS)
def test_networks_read_the_same_images_and_labels(form: str, soft: bool, whitened: bool, tmp_path: Path) -> None:
    size = 32 if form == "ddranking" else 8  # which scores real data sets alone
    if size == 32 and whitened:
        exported = made(soft, whitening=pixels.Whitening(torch.zeros(3072), 2 * torch.eye(3072), torch.eye(3072) / 2))
    else:
        exported = made(soft, whitened, size=size, network=ConvNet(depth=2, width=8))
    writing.write(form, exported, tmp_path / "out")
    images, labels = READERS[form](tmp_path / "out", exported.space.normalise)
    assert images.shape == exported.pixels.shape
    assert (images - exported.inputs).abs().max() < (1e-5 if form == "ddranking" else 1e-12)
    assert torch.equal(labels, exported.labels) or (form == "pt" and (labels - exported.labels).abs().max() < 1e-6)
    assert (tmp_path / "out" / "space.pt").exists() == whitened


def untouched(tensor: Tensor) -> Tensor:
    return tensor


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("soft", [False, True])
def test_pictures_lose_half_a_level_and_what_leaves_black_and_white(soft: bool, channels: int, tmp_path: Path) -> None:
    exported = small(soft=soft, channels=channels)
    writing.write("images", exported, tmp_path)
    found, labels = read_images.read(tmp_path, untouched)
    assert (found - exported.pixels.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(labels, exported.labels)
    with (tmp_path / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [NAMES[k] for k in exported.indices]
    assert all(Path(row["file"]).parent.name == f"{int(row['class']):04d}" for row in rows)
    cut = ((exported.pixels < 0) | (exported.pixels > 1)).double().mean().item()
    assert f"{100 * cut:.1f} % of the" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_tensors_load_as_plain_weights(tmp_path: Path) -> None:
    """Under the names of MTT's code, with the type it takes, and a rate that becomes a number."""
    exported = made(whitened=False)
    writing.write("pt", exported, tmp_path / "pt")
    found = {path.name: torch.load(path, weights_only=True) for path in (tmp_path / "pt").glob("*.pt")}
    assert found.keys() == {"images_best.pt", "labels_best.pt", "lr_best.pt"}
    assert found["labels_best.pt"].dtype == torch.int64
    assert float(found["lr_best.pt"]) == exported.syn_lr
    assert torch.allclose(
        found["images_best.pt"] * exported.std.view(3, 1, 1) + exported.mean.view(3, 1, 1), exported.pixels, atol=ANY
    )
    writing.write("ddranking", exported, tmp_path / "dd")
    images = torch.load(tmp_path / "dd" / "images.pt", weights_only=True)
    std, mean = (torch.tensor(values).view(3, 1, 1) for values in ((0.2023, 0.1994, 0.2010), (0.4914, 0.4822, 0.4465)))
    assert torch.allclose(images * std + mean, exported.pixels, atol=ANY)


def test_the_repository_reads_its_own_format(tmp_path: Path) -> None:
    for half in (False, True):
        exported = small(soft=half, half=half)
        writing.write("safetensors", exported, tmp_path / f"{half}")
        path = tmp_path / f"{half}" / "synthetic.safetensors"
        found = read_synthetic(path, "")
        assert torch.equal(found.pixels, exported.pixels.half().float() if half else exported.pixels)
        assert torch.equal(found.labels, exported.labels)
        assert found.syn_lr.item() == exported.syn_lr
        assert load_file(path)["pixels"].dtype == (torch.float16 if half else torch.float32)
    with pytest.raises(UserError, match="--half belongs to --format safetensors, not to huggingface: leave it out"):
        writing.write_many("huggingface", [small(), small(half=True)], tmp_path / "several")
    with pytest.raises(UserError, match="too large for float16: export it without --half"):
        writing.write("safetensors", small(half=True, pixels=torch.full((20, 3, 8, 8), 1e6)), tmp_path / "huge")
    assert not list((tmp_path / "huge").iterdir())


# -- the Hub's folder


def front_matter(folder: Path, version: tuple[int, int]) -> dict[str, Any]:
    head, card, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert head == ""
    yaml = YAML(typ="safe")
    yaml.version = version
    return dict(yaml.load(card))


@pytest.mark.parametrize("version", [(1, 1), (1, 2)])  # the Hub's own reader is of 1.1, where yes is a boolean
def test_the_card_says_what_the_parquet_file_holds(version: tuple[int, int], tmp_path: Path) -> None:
    exported = small(soft=True)
    writing.write("huggingface", exported, tmp_path)
    card = front_matter(tmp_path, version)
    assert card["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]
    assert (card["size_categories"], card["task_categories"]) == (["n<1K"], ["image-classification"])
    assert "license" not in card
    info = card["dataset_info"]
    assert info["splits"][0]["num_examples"] == 20
    features = {feature["name"]: feature for feature in info["features"]}
    assert features["label"]["dtype"]["class_label"]["names"] == {str(k): name for k, name in enumerate(NAMES)}
    table = pq.ParquetFile(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert info["download_size"] == (tmp_path / "data" / "train-00000-of-00001.parquet").stat().st_size
    stored = json.loads(table.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert list(stored) == table.schema_arrow.names == list(features)
    assert stored["image"] == {"_type": "Image"}
    assert stored["label"] == {"names": list(NAMES), "_type": "ClassLabel"}
    assert stored["pixels"]["shape"] == features["pixels"]["dtype"]["array3_d"]["shape"] == [3, 8, 8]
    assert str(table.schema_arrow.field("image").type) == "struct<bytes: binary, path: string>"
    first = table.read().to_pylist()[0]
    assert Image.open(io.BytesIO(first["image"]["bytes"])).mode == "RGB"
    assert first["label"] == exported.indices[0]


def test_two_runs_are_two_configurations(tmp_path: Path) -> None:
    sets = [small(name="on", channels=1), small(name="two", soft=True)]
    writing.write_many("huggingface", sets, tmp_path)
    card = front_matter(tmp_path, (1, 1))
    assert [(one["config_name"], one.get("default")) for one in card["configs"]] == [("on", True), ("two", None)]
    assert [one["config_name"] for one in card["dataset_info"]] == ["on", "two"]
    for exported in sets:
        found, labels = read_huggingface.read(tmp_path / exported.name, untouched)
        assert torch.equal(found, exported.pixels)
        assert torch.equal(labels, exported.labels)
        assert (tmp_path / exported.name / "train_on_it.py").exists()


# -- the script


TINY = Protocol(epochs=30, augmentation=("crop", "cutout", "scale", "rotate", "color", "flip"))


def learnable(form: str) -> tuple[Exported, Tensor, Tensor]:
    """Images whose classes differ in colour, and others like them: two of each class synthetic, ten real."""
    size = 32 if form == "ddranking" else 8
    generator = torch.Generator().manual_seed(1)
    prototypes = torch.rand(10, 3, 2, 2, generator=generator).repeat_interleave(size // 2, 2).repeat_interleave(size // 2, 3)
    labels = torch.arange(10).repeat(12)
    images = (prototypes[labels] + 0.05 * torch.randn(120, 3, size, size, generator=generator)).clamp(0, 1)
    changed = {"pixels": images[:20], "labels": labels[:20], "evaluation": TINY, "network": ConvNet(depth=2, width=16)}
    return made(size=size, **changed), images[20:], labels[20:]


# one process for all folders, as it is torch's import that takes its time; none of the repository's modules is in its reach
ALL = """
import runpy, sys
for folder in sys.argv[1:]:
    epochs = ["--epochs", "8"] if folder == "ddranking" else []
    sys.argv = ["train_on_it.py", "--test", f"{folder}.npz", "--students", "2", "--device", "cpu", *epochs]
    runpy.run_path(f"{folder}/train_on_it.py", run_name="__main__")
"""


def test_the_scripts_train_students_from_their_folders_alone(tmp_path: Path) -> None:
    for form in READERS:
        exported, images, labels = learnable(form)
        writing.write(form, exported, tmp_path / form)
        levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        np.savez_compressed(tmp_path / f"{form}.npz", images=levels, labels=labels.numpy())
        assert "from src" not in scripts.assembled(form)
    found = subprocess.run(
        [sys.executable, "-I", "-c", ALL, *READERS],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # other tests run beside it
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    means = [line.removeprefix("test accuracy ") for line in found.stdout.splitlines() if line.startswith("test")]
    assert len(means) == len(READERS)
    for line in means:
        assert float(line.split(" ± ")[0]) > 50, "of ten classes"
        assert line.endswith("% over 2 students")


def test_the_scripts_network_is_the_repositorys() -> None:
    """The same layers at the same parameters say the same, for every norm, activation and pooling, and for padded 28x28."""
    for spec in (
        ConvNet(depth=2, width=8),
        ConvNet(depth=1, width=8, norm="group", activation="gelu", pooling="max"),
        ConvNet(depth=2, width=4, norm="layer", activation="leaky_relu", pooling="none"),
        ConvNet(depth=2, width=4, norm="batch", activation="sigmoid"),
        ConvNet(depth=1, width=4, norm="none"),
    ):
        for size in (8, 28):
            theirs, ours = (
                train_on_it.convnet(spec.model_dump(), 3, size, 10),
                networks.assembled(spec, ImageShape(3, size, 10)),
            )
            ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
            assert torch.equal(flatten(ours), flatten(theirs))
            images = torch.randn(4, 3, size, size)
            assert torch.allclose(theirs(images), ours(images), atol=1e-6)


@pytest.mark.parametrize("kind", augmentation.KINDS)
def test_the_scripts_augmentation_is_the_repositorys(kind: str) -> None:
    """Number by number, of the same uniform draws."""
    uniforms = torch.rand(6, 3)
    for size in (8, 11, 28):
        images = torch.randn(6, 3, size, size)
        expected = augmentation.apply(augmentation.Draw(kind, uniforms), images)
        found = train_on_it.AUGMENTATIONS[kind](images, uniforms.T.reshape(3, 6, 1, 1, 1))
        assert torch.allclose(found, expected, atol=1e-5)


def test_the_script_reads_test_images_in_any_layout(tmp_path: Path) -> None:
    grey = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    for array, like in (
        (grey, (1, 3, 3)),
        (grey[:, None], (1, 3, 3)),
        (grey[..., None].astype(np.int64), (1, 3, 3)),
        (np.repeat(grey[..., None], 3, axis=3) / np.float32(17), (3, 3, 3)),
    ):
        np.savez(tmp_path / "test.npz", images=array, labels=np.array([0, 1], np.int32))
        found = train_on_it.arrays(tmp_path / "test.npz")
        assert found["labels"].tolist() == [0, 1]
        shown = train_on_it.pixels_of(found["images"], like, 17)
        assert torch.allclose(shown, torch.from_numpy(grey)[:, None].expand(-1, like[0], -1, -1) / 17)
    with pytest.raises(SystemExit, match="bring them to that"):
        train_on_it.pixels_of(torch.zeros(2, 4, 4), (1, 3, 3), 255)
    np.savez(tmp_path / "test.npz", images=grey.astype(np.complex64))
    with pytest.raises(SystemExit, match="is of type <c8"):
        train_on_it.arrays(tmp_path / "test.npz")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"labels": np.arange(1, 5)}, "the labels go from 1 to 4, the classes in set.json from 0 to 3: number them like these"),
        ({"labels": np.arange(3)}, r"has 4 images and labels of shape \(3,\): give one label for each image"),
        ({"labels": np.zeros((0,), int), "images": np.zeros((0, 3, 3), np.uint8)}, r"has 0 images and labels of shape \(0,\)"),
        ({"labels": None}, "holds images: it takes `images` and `labels`"),
        ({"images": np.full((4, 3, 3), 200, np.float32)}, "the test images go from 200 to 200, where 0 is black and 1 white"),
        ({"images": np.full((4, 3, 3), -0.5, np.float32)}, "the test images go from -0.5 to -0.5"),
        ({"images": np.full((4, 3, 3), np.nan, np.float32)}, "the test images go from nan to nan"),
        ({"images": np.full((4, 3, 3), 300, np.int32)}, "name the white of integers with --pixel-max"),
        ({"images": np.full((4, 3, 3), 16, np.uint8)}, "integers up to 16, all but black where 255 is white: name their white"),
    ],
)
def test_the_script_refuses_what_makes_its_accuracy_wrong(changed: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    """Labels that begin at 1 gave 0 %, and images of another range an accuracy of chance."""
    whole: dict[str, Any] = {"images": np.full((4, 3, 3), 128, np.uint8), "labels": np.arange(4), **changed}
    np.savez(tmp_path / "test.npz", **{name: value for name, value in whole.items() if value is not None})
    with pytest.raises(SystemExit, match=sentence):
        train_on_it.tested(tmp_path / "test.npz", (1, 3, 3), 4, None)


def test_the_script_refuses_what_is_no_file_of_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "junk.npz").write_bytes(b"junk")
    for name in ("junk.npz", "missing.npz"):
        with pytest.raises(SystemExit, match=rf"{name} is not there, or no \.npz file: write it with numpy\.savez"):
            train_on_it.arrays(tmp_path / name)


def test_the_script_takes_a_white_that_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", images=np.full((4, 3, 3), 16, np.uint8), labels=np.arange(4))
    for white in (16, 255):
        shown, _ = train_on_it.tested(tmp_path / "test.npz", (1, 3, 3), 4, white)
        assert torch.equal(shown, torch.full((4, 1, 3, 3), 16 / white))


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--students", "0", "'0' is no whole number of 1 or more"),
        ("--pixel-max", "0", "'0' is no number above 0"),
        ("--pixel-max", "white", "'white' is no number above 0"),
        ("--device", "gpu", "'gpu' is no device of this machine: take cpu"),
    ],
)
def test_the_script_refuses_a_wrong_option(
    option: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_on_it.py", "--test", "test.npz", option, value])
    with pytest.raises(SystemExit, match="2"):
        train_on_it.told()
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("network", [MLP(family="MLP"), ConvNet(depth=2, width=8)])
def test_a_script_comes_with_a_convnet_alone(network: Network, tmp_path: Path) -> None:
    writing.write("pt", made(size=8, network=network), tmp_path)
    assert (tmp_path / "train_on_it.py").exists() == isinstance(network, ConvNet)
    assert ("comes with runs of a ConvNet alone" in (tmp_path / "README.md").read_text()) != isinstance(network, ConvNet)


# -- what can't be written is a sentence, and leaves nothing


@pytest.mark.parametrize(
    ("form", "changed", "sentence"),
    [
        ("png", {}, "--format png is none: choose one of safetensors, images, pt, huggingface, ddranking"),
        ("images", {"channels": 2}, "mine has images of 2 channels, and --format images holds 1"),
        ("huggingface", {"channels": 4}, "mine has images of 4 channels, and --format huggingface holds 1"),
        ("pt", {"half": True}, "--half belongs to --format safetensors, not to pt"),
        ("ddranking", {"channels": 1}, "DD-Ranking can't score mine, 10 classes of 1x8x8 of cifar10: it takes cifar10"),
        ("ddranking", {"size": 32, "labels": torch.arange(20) // 3}, "takes as many images of each class, and mine has 0 to 3"),
    ],
)
def test_what_a_format_can_not_hold_is_refused(form: str, changed: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        writing.write(form, made(**({"size": 8} | changed)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--format pt holds one set, and 2 are given"):
        writing.write_many("pt", [small(), small()], tmp_path / "out")
    with pytest.raises(UserError, match="a run stands twice in mine, mine"):
        writing.write_many("huggingface", [small(), small()], tmp_path / "out")
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="is not an empty folder"):
        writing.write("pt", small(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("form", writing.FORMATS)
def test_a_folder_is_whole_or_empty(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the disk is full, which is a sentence."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scripts, "add", full)
    with pytest.raises(ArtifactError, match=r"can't be written \(No space left on device\)"):
        writing.write(form, made(), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.undo()
    writing.write(form, made(), tmp_path / "out")
    assert (tmp_path / "out" / "train_on_it.py").exists()
