"""Anybody's synthetic sets: each form and space comes back as the same pixels, and what the user says is held against them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from src.exchange import sets
from src.exchange.images import MTT_FIGURES
from src.exchange.sets import Imported, Options
from src.ground.errors import ArtifactError, UserError
from src.maths import pixels as spaces
from src.maths.networks import ImageShape
from src.maths.pixels import Normalisation, Whitening
from src.settings import resolved
from src.settings.params import parse
from src.store.store import read_synthetic
from src.store.values import Record, Snapshots, SyntheticSet
from tests.imports import ROOT
from tests.mtt_files import write
from tests.small_run import STORE

SHAPE = ImageShape(3, 8, 4)
IPC = 2
MEAN, STD = torch.tensor([0.49, 0.45, 0.4]), torch.tensor([0.25, 0.2, 0.22])
PIXELS = Options("pixels", syn_lr=0.02)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=draw(4))


def set_of(shape: ImageShape = SHAPE) -> SyntheticSet:
    """Distilled: some pixels lie outside of [0, 1]."""
    images = torch.rand(IPC * shape.classes, shape.channels, shape.size, shape.size, generator=draw())
    images = images + 0.1 * torch.randn(images.shape, generator=draw(1))
    return SyntheticSet(images, torch.arange(shape.classes).repeat_interleave(IPC), torch.tensor(0.02))


def whitening(shape: ImageShape = SHAPE) -> Whitening:
    real = torch.randint(256, (64, shape.channels, shape.size, shape.size), generator=draw(2), dtype=torch.uint8)
    return spaces.fit_whitening(real, 255, 0.1)


def of_tensors(path: Path, images: Tensor, labels: Tensor) -> Path:
    write(path / "labels_best.pt", labels)
    write(path / "lr_best.pt", torch.tensor(0.02))
    return write(path / "images_best.pt", images)


def of_arrays(path: Path, images: Tensor, labels: Tensor) -> Path:
    np.save(path / "labels_x.npy", labels.numpy())
    np.save(path / "images_x.npy", images.numpy())
    return path / "images_x.npy"


def of_npz(path: Path, images: Tensor, labels: Tensor) -> Path:
    np.savez(path / "x.npz", x=images.numpy(), y=labels.numpy(), lr=0.02)
    return path / "x.npz"


def of_safetensors(path: Path, images: Tensor, labels: Tensor) -> Path:
    save_file({"images": images, "labels": labels, "lr": torch.tensor([0.02])}, path / "x.safetensors", {"by": "me"})
    return path / "x.safetensors"


def of_dictionary(path: Path, images: Tensor, labels: Tensor) -> Path:
    held = {"image_syn": images.requires_grad_(), "label_syn": labels, "syn_lr": 0.02, "epoch": 5, "name": "mine"}
    return write(path / "x.pth", held)


def of_pair(path: Path, images: Tensor, labels: Tensor) -> Path:
    return write(path / "x.pt", [images, labels])


def of_condensation(path: Path, images: Tensor, labels: Tensor) -> Path:
    return write(path / "res_DC.pt", {"data": [[images, labels]], "accs_all_exps": {"ConvNet": [0.5]}})


FORMS: list[Callable[[Path, Tensor, Tensor], Path]] = [
    of_tensors, of_arrays, of_npz, of_safetensors, of_dictionary, of_pair, of_condensation,
]  # fmt: skip


def read(path: Path, options: Options = PIXELS, shape: ImageShape = SHAPE) -> Imported:
    return sets.read(path, shape, options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("space", ["pixels", "normalised", "whitened"])
def test_every_form_comes_back_from_every_space(space: Any, form: Callable[..., Path], tmp_path: Path) -> None:
    made = set_of()
    of = {"pixels": None, "normalised": Normalisation(MEAN, STD), "whitened": whitening()}[space]
    images = made.pixels if of is None else of.normalise(made.pixels)
    found = read(form(tmp_path, images, made.labels), Options(space, of, syn_lr=0.02)).value
    assert (found.pixels - made.pixels).abs().max() <= (0 if of is None else 1e-5)
    assert (found.pixels.dtype, found.labels.dtype, found.syn_lr.dtype) == (torch.float32, torch.int64, torch.float32)
    assert torch.equal(found.labels, made.labels)
    assert torch.equal(found.syn_lr, made.syn_lr)
    assert not found.pixels.requires_grad


RELEASED = sorted(path.parent.name for path in (ROOT / "data" / "released").glob("*/set.json"))
FIGURES = {**MTT_FIGURES, "digits": ((0.305,), (0.376,)), "fashion": ((0.286,), (0.353,))}  # mean and std


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_card_names_all_that_its_run_takes(name: str) -> None:
    card = json.loads((ROOT / "data" / "released" / name / "set.json").read_text(encoding="utf-8"))
    run = resolved.run(parse(card["settings"]), name)
    assert run.spec.model_dump() == card["network"] and run.evaluation.model_dump(mode="json") == card["evaluation"]
    assert run.initial is None or run.initial.name == run.distillation.initial_run


@pytest.mark.parametrize("name", RELEASED)
def test_distilled_sets_are_taken_in_their_space_and_in_no_other(name: str, tmp_path: Path) -> None:
    """Those of one image per class are the wildest: a sixth of their pixels lies below -0.5."""
    made = read_synthetic(ROOT / "data" / "released" / name / "synthetic.safetensors", "")
    of = Normalisation(*(torch.tensor(figures) for figures in FIGURES[name.partition("-")[0]]))
    classes = json.loads((ROOT / "data" / "released" / name / "set.json").read_text(encoding="utf-8"))["dataset"]["classes"]
    shape = ImageShape(made.pixels.shape[1], made.pixels.shape[2], len(classes))
    forms = {"pixels": made.pixels, "normalised": of.normalise(made.pixels)}
    for true, images in forms.items():
        path = of_tensors(tmp_path, images, made.labels)
        for said in forms:
            options = Options(said, None if said == "pixels" else of)  # type: ignore[arg-type]
            if said == true:
                assert (read(path, options, shape).value.pixels - made.pixels).abs().max() <= 1e-5
            else:
                with pytest.raises(ArtifactError, match=f"looks {'like pixels' if true == 'pixels' else 'normalised'}"):
                    read(path, options, shape)


@pytest.mark.parametrize("half", [False, True])
def test_our_own_files_come_back(half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    STORE.save_synthetic("r", set_of(), Record("synthetic set", {}))
    STORE.copy_synthetic("r", set_of(), tmp_path / "x.safetensors", half)
    found = read(tmp_path / "x.safetensors", Options("normalised")).value
    assert (found.pixels - set_of().pixels).abs().max() <= (1e-3 if half else 0)
    assert torch.equal(found.syn_lr, set_of().syn_lr)
    STORE.save_snapshots("r", Snapshots(torch.tensor([0]), uniform(1, 2, 3, 8, 8)), Record("", {}))
    with pytest.raises(ArtifactError, match="is a 'snapshots', not a 'synthetic set'"):
        read(STORE.snapshots_file("r"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("names", [["3", "10", "2", "1"], ["0000", "0001", "0002", "0003"], ["a", "b", "c", "d"]])
def test_a_folder_of_images_comes_back(names: list[str], channels: int, tmp_path: Path) -> None:
    """In natural order, by number, or by the data set's own names, whatever their order is there."""
    integers = torch.randint(256, (4, IPC, 8, 8, 3), generator=draw(), dtype=torch.uint8)
    integers = integers if channels == 3 else integers[..., :1]
    for name, images in zip(names, integers, strict=True):
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image.squeeze(-1).numpy()).save(tmp_path / name / f"{9 + number}.png")
    (tmp_path / names[0] / "notes.txt").write_text("mine")
    own = ("d", "c", "b", "a")
    found = read(tmp_path, Options("pixels", class_names=own, syn_lr=0.1), ImageShape(channels, 8, 4))
    order = {"3": [3, 2, 0, 1], "0000": [0, 1, 2, 3], "a": [3, 2, 1, 0]}[names[0]]
    expected = integers[order].flatten(0, 1).permute(0, 3, 1, 2) / 255
    assert torch.equal(found.value.pixels, expected)
    assert found.value.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert any("notes.txt" in note for note in found.notes)


def test_integers_are_pixels_of_255(tmp_path: Path) -> None:
    integers = torch.randint(256, (8, 3, 8, 8), generator=draw(), dtype=torch.uint8)
    for images in (integers, integers.long(), integers.float(), integers.half()):
        found = read(of_pair(tmp_path, images, set_of().labels))
        assert torch.equal(found.value.pixels, integers / 255)
        assert any("integers" in note for note in found.notes)


def test_other_orders_of_axes_are_noticed(tmp_path: Path) -> None:
    made = set_of()
    found = read(of_pair(tmp_path, made.pixels.permute(0, 2, 3, 1).contiguous(), made.labels))
    assert torch.equal(found.value.pixels, made.pixels)
    assert any("(S, H, W, C)" in note for note in found.notes)
    grey = set_of(ImageShape(1, 8, 4))
    found = read(of_pair(tmp_path, grey.pixels[:, 0], grey.labels), shape=ImageShape(1, 8, 4))
    assert torch.equal(found.value.pixels, grey.pixels)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint16, torch.uint32, torch.uint64])
def test_integers_of_any_type_are_classes(dtype: torch.dtype, tmp_path: Path) -> None:
    found = read(of_safetensors(tmp_path, set_of().pixels, set_of().labels.to(dtype))).value
    assert torch.equal(found.labels, set_of().labels)
    with pytest.raises(ArtifactError, match=r"images of .* are of type float8_e5m2: save plain arrays of numbers of float32"):
        read(of_safetensors(tmp_path, set_of().pixels.to(torch.float8_e5m2), set_of().labels))


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    made = set_of()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        found = read(of_safetensors(tmp_path, made.pixels.to(dtype), made.labels)).value
        assert torch.equal(found.pixels, made.pixels.to(dtype).float())


LOGITS = 3 * torch.randn(8, 4, generator=draw(3))
SOFT = LOGITS.softmax(1)
COUNTS = torch.ones(8, 4) * torch.arange(1, 5)


@pytest.mark.parametrize(
    ("labels", "said", "expected"),
    [
        (set_of().labels.float(), None, set_of().labels),
        (set_of().labels[:, None].to(torch.int32), "classes", set_of().labels),
        (torch.eye(4)[set_of().labels].long(), None, set_of().labels),
        (torch.eye(4)[set_of().labels], "classes", set_of().labels),
        (torch.eye(4)[set_of().labels], None, torch.eye(4)[set_of().labels]),
        (SOFT, None, SOFT),
        (SOFT.half(), "probabilities", SOFT),
        (LOGITS, None, SOFT),
        (LOGITS, "logits", SOFT),
        (COUNTS, "logits", COUNTS.softmax(1)),
    ],
)
def test_labels_of_every_kind(labels: Tensor, said: Any, expected: Tensor, tmp_path: Path) -> None:
    path = of_pair(tmp_path, set_of().pixels, labels)
    found = read(path, Options("pixels", labels=said, syn_lr=0.02)).value
    assert found.labels.dtype == expected.dtype
    assert (found.labels - expected).abs().max() <= 1e-3
    if found.labels.is_floating_point():
        assert (found.labels.sum(1) - 1).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("labels", "said", "words"),
    [
        (COUNTS, None, "soft labels that are not negative, but don't sum to 1"),
        (COUNTS, "probabilities", "no probabilities, as those of an image sum to 10"),
        (LOGITS, "probabilities", "no probabilities, as some are negative: say logits"),
        (SOFT, "logits", "looks like probabilities, as each row sums to 1"),
        (SOFT, "classes", "is said to have classes, but its rows"),
        (COUNTS.long(), None, "has integers, but its rows of K numbers are not one-hot"),
        (torch.eye(4)[set_of().labels].long(), "logits", "one-hot rows of integers, which are no logits"),
        (set_of().labels, "logits", "one label for each image, but logits are"),
        (set_of().labels + 0.5, None, "no whole numbers"),
        (set_of().labels + 1, None, "labels from 1 to 4, but classes are 0 to 3: subtract 1"),
        (set_of().labels - 1, None, "labels from -1 to 2"),
        (set_of().labels + 5, None, "labels from 5 to 8, .*: use the data set of these labels"),
        (set_of().labels[:-1], None, r"labels of shape \(7,\) for 8 images"),
        (uniform(8, 4, 2), None, r"labels of shape \(8, 4, 2\) for 8 images"),
        (uniform(8, 5), None, "soft labels of 5 classes, but the data set has 4"),
        (SOFT.log().masked_fill(SOFT < 0.01, float("-inf")), None, "labels that are not finite"),
        (torch.tensor(3), None, r"labels of shape \(\) for 8 images"),
        (set_of().labels.bool(), None, "labels of .*x.pt are of type bool"),
    ],
)
def test_labels_that_are_not_what_is_said(labels: Tensor, said: Any, words: str, tmp_path: Path) -> None:
    path = of_pair(tmp_path, set_of().pixels, labels)
    with pytest.raises(ArtifactError, match=words):
        read(path, Options("pixels", labels=said, syn_lr=0.02))


def test_bright_normalised_images_are_taken(tmp_path: Path) -> None:
    """Ten images of a data set are seldom as bright as all of it."""
    images = 0.4 + torch.randn(8, 3, 8, 8, generator=draw())
    found = read(of_pair(tmp_path, images, set_of().labels), Options("normalised", NORMAL, syn_lr=1.0)).value
    assert torch.equal(found.pixels, NORMAL.to_pixels(images))


def test_whoever_is_sure_is_believed(tmp_path: Path) -> None:
    path = of_pair(tmp_path, set_of().pixels.clamp(0, 1), SOFT)
    of = Normalisation(MEAN, STD)
    found = read(path, Options("normalised", of, "logits", syn_lr=0.02, sure=True)).value
    assert torch.equal(found.pixels, of.to_pixels(set_of().pixels.clamp(0, 1)))
    assert (found.labels - SOFT.softmax(1)).abs().max() <= 1e-6
    normalised = of.normalise(set_of().pixels)
    found = read(of_pair(tmp_path, normalised, set_of().labels), Options("pixels", syn_lr=1.0, sure=True)).value
    assert torch.equal(found.pixels, normalised)


NORMAL = Normalisation(MEAN, STD)


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (NORMAL.normalise(set_of().pixels), PIXELS, "looks normalised: its numbers are .*: say that it is"),
        (100 * uniform(8, 3, 8, 8), PIXELS, "looks like pixels of 0 to 255.*: divide by 255"),
        (set_of().pixels - 1, PIXELS, "looks normalised"),
        (0.1 * uniform(8, 3, 8, 8) - 0.4, PIXELS, "looks like no pixels: its pixels have mean -0.3"),
        (uniform(8, 3, 8, 8), Options("normalised", NORMAL, syn_lr=1.0), r"pixels: all of its .* in \[0, 1\], with mean"),
        (uniform(8, 3, 8, 8), Options("whitened", whitening(), syn_lr=1.0), "where whitened images have 0"),
        (2 * set_of().pixels - 0.5, Options("normalised", NORMAL, syn_lr=1.0), "looks like pixels: .* of its numbers"),
        (4 * set_of().pixels - 0.7, Options("normalised", NORMAL, syn_lr=1.0), "looks like pixels: .* of its numbers"),
        (torch.randint(256, (8, 3, 8, 8), generator=draw()), Options("normalised", NORMAL, syn_lr=1.0), "it holds integers"),
        (torch.randint(-5, 300, (8, 3, 8, 8), generator=draw()), PIXELS, "integers of -5 to 299"),
        (set_of().pixels * 30 + 10, Options("normalised", NORMAL, syn_lr=1.0), "looks otherwise than normalised"),
        (set_of().pixels / 0, PIXELS, "numbers that are not finite"),
        (torch.ones(8, 3, 8, 8, dtype=torch.bool), PIXELS, "images of .*x.pt are of type bool"),
        (torch.ones(0, 3, 8, 8), PIXELS, "which are none"),
        (torch.ones(()), PIXELS, "reshape them"),
        (uniform(8, 192), PIXELS, r"images of shape \(8, 192\), but the data set's are \(S, 3, 8, 8\): reshape"),
        (uniform(4, 2, 3, 8, 8), PIXELS, "reshape them"),
        (uniform(8, 1, 8, 8), PIXELS, "these have 1 channels, so use a data set with 1"),
        (uniform(8, 8, 8, 1), PIXELS, "these have 1 channels behind height and width"),
        (uniform(8, 3, 16, 16), PIXELS, "these have 16x16 pixels"),
        (uniform(8, 16, 16, 3), PIXELS, "these have 16x16 pixels"),
        (uniform(8, 8, 8), PIXELS, "reshape them"),
    ],
)  # fmt: skip
def test_images_that_are_not_what_is_said(images: Tensor, options: Options, words: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=words) as refusal:
        read(of_pair(tmp_path, images, set_of().labels), options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options("normalised", syn_lr=1.0), "which is not known: give the mean and std"),
        (Options("normalised", whitening(), syn_lr=1.0), "is another one, whitening"),
        (Options("whitened", NORMAL, syn_lr=1.0), "is another one, normalisation: give a data set with whitening 'zca'"),
        (Options("normalised", Normalisation(MEAN[:1], STD[:1]), syn_lr=1.0), "for 1 numbers .*, but the images have 3"),
        (Options("whitened", whitening(ImageShape(1, 8, 4)), syn_lr=1.0), "for 64 numbers .*, but the images have 192"),
        (Options("pixels"), "says no learning rate for students: give syn_lr"),
        (Options("pixels", syn_lr=0.0), "the learning rate 0, but students need one above 0"),
        (Options("pixels", syn_lr=float("nan")), "the learning rate nan"),
    ],
)
def test_what_has_to_be_said_first(options: Options, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        read(of_pair(tmp_path, set_of().pixels, set_of().labels), options)


def test_the_users_learning_rate_goes_first(tmp_path: Path) -> None:
    path = of_dictionary(tmp_path, set_of().pixels, set_of().labels)
    assert float(read(path, Options("pixels")).value.syn_lr) == pytest.approx(0.02)
    assert float(read(path, Options("pixels", syn_lr=0.5)).value.syn_lr) == 0.5
    held = {"images": set_of().pixels, "labels": set_of().labels, "lr": torch.ones(2)}
    with pytest.raises(ArtifactError, match=r"learning rates of shape \(2,\)"):
        read(write(path, held), Options("pixels"))


def test_the_labels_may_be_named(tmp_path: Path) -> None:
    images, labels = write(tmp_path / "a.pt", set_of().pixels), write(tmp_path / "b.pt", {"y": set_of().labels})
    found = read(images, Options("pixels", labels_file=labels, syn_lr=0.1))
    assert torch.equal(found.value.labels, set_of().labels)
    with pytest.raises(UserError, match="images without labels: name the file"):
        read(images)
    with pytest.raises(ArtifactError, match="holds 'z', but is to hold labels"):
        read(images, Options("pixels", labels_file=write(labels, {"z": set_of().labels}), syn_lr=0.1))


def test_neighbours_are_those_of_the_same_moment(tmp_path: Path) -> None:
    """As MTT's code numbers them; images_zca_100.pt are the pixels of images_100.pt."""
    write(tmp_path / "labels_100.pt", set_of().labels)
    write(tmp_path / "labels_best.pt", set_of().labels.flip(0))
    for name in ("images_100.pt", "images_zca_100.pt"):
        found = read(write(tmp_path / name, set_of().pixels))
        assert torch.equal(found.value.labels, set_of().labels)
        assert any("labels_100.pt" in note for note in found.notes)


def test_an_uneven_set_is_only_said(tmp_path: Path) -> None:
    found = read(of_pair(tmp_path, set_of().pixels, torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])))
    assert found.notes == ("images per class differ, from 0 to 4: class 3 has 0, class 1 has 2, class 2 has 2",)
    assert read(of_pair(tmp_path, set_of().pixels, set_of().labels)).notes == ()


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, "red" if mode == "RGB" else 100).save(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("count", "holds 3 folders with images (a, b, c), but there are 4 classes"),
        ("names", "e is no class of the data set, which has a, b, c, ...: rename the folder"),
        ("flat", "x.png lies in no folder of a class"),
        ("size", "x.png has 9x8 pixels, where the data set has 8x8"),
        ("damaged", "x.png can't be read as an image"),
        ("empty", "holds 0 folders with images (none)"),
        ("numbers", "holds 2 folders with images (1, 7)"),
    ],
)
def test_folders_that_are_no_set(name: str, words: str, tmp_path: Path) -> None:
    folders = {"names": "abce", "count": "abc", "numbers": "17", "empty": ""}.get(name, "abcd")
    for folder in folders:
        picture(tmp_path / folder / "1.png")
    (tmp_path / "b").mkdir(exist_ok=True)
    if name == "flat":
        picture(tmp_path / "x.png")
    elif name == "size":
        picture(tmp_path / "b" / "x.png", size=(9, 8))
    elif name == "damaged":
        (tmp_path / "b" / "x.png").write_bytes((tmp_path / "a" / "1.png").read_bytes()[:45])
    options = Options("pixels", class_names=tuple("abcd") if name == "names" else (), syn_lr=0.1)
    with pytest.raises(ArtifactError, match=re.escape(words)):
        read(tmp_path, options)


def test_a_folder_in_colour_is_no_grey_set(tmp_path: Path) -> None:
    for folder in "abcd":
        picture(tmp_path / folder / "1.png", "L")
    assert read(tmp_path).value.pixels.shape == (4, 3, 8, 8), "grey ones are in colour, too"
    picture(tmp_path / "c" / "1.png")
    with pytest.raises(ArtifactError, match=r"1.png is in colour, where the data set is grey"):
        read(tmp_path, shape=ImageShape(1, 8, 4))
    for options in (Options("normalised", NORMAL), Options("pixels", labels_file=tmp_path / "x.pt")):
        with pytest.raises(UserError, match="is a folder"):
            read(tmp_path, options)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"foo": torch.ones(2)}, "holds 'foo', none of which is a name for images"),
        ({"images": torch.ones(2), "x": torch.ones(2)}, "holds both 'images' and 'x'"),
        ({}, "holds nothing, none of which"),
        ({"data": [[torch.ones(2), torch.ones(2)]] * 3}, "holds 3 sets under 'data'"),
        ("text", "holds an object of type str"),
        ([torch.ones(2)] * 3, "holds an object of type list"),
        ({"images": torch.ones(2).to_sparse(), "labels": 1}, "a tensor of another kind than plain numbers"),
        (torch.ones(1).expand(1000), "more than what the file holds of it"),
    ],
)
def test_files_of_torch_that_hold_no_set(held: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=words):
        read(write(tmp_path / "x.pt", held))
