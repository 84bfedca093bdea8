"""Settings of tuples against each other: what does not go together is told where it stands; presets are valid."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from src import cli
from src.editing import tuples as presets
from src.ground.errors import ParamsError
from src.settings.params import load, parse
from tests import tuples
from tests.imports import ROOT

IMAGES: dict[str, Any] = {"source": "digits"}
DISTILL = "runs.proxy.distill"


def put(raw: dict[str, Any], at: str, value: Any) -> dict[str, Any]:
    *above, last = at.split("/")
    place = raw
    for key in above:
        place = place[key]
    place[last] = value
    return raw


def problems(raw: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ParamsError) as error:
        parse(raw)
    return dict(error.value.problems)


def test_the_settings_are_right() -> None:
    assert list(parse(tuples.params()).runs) == ["proxy", "random"]


WRONG: list[tuple[str, Any, str, str]] = [
    (
        "networks/both",
        {"depth": 1, "width": 4},
        "runs.proxy.network",
        "reads images alone, and 'digits-seen-written' is of tuples",
    ),
    (
        "prepare/digits-seen-written/modalities",
        {"image": {"kind": "image"}, "Image": {"kind": "image"}},
        "prepare.digits-seen-written",
        "modality 'Image' differs from 'image' in capitals alone",
    ),
    (
        "networks/both/encoders",
        {"image": {"depth": 1, "width": 4}},
        "networks.both",
        "encoders name 1 modality: a tuple has two",
    ),
    (
        "networks/both/encoders",
        {"text": {"family": "TextNet"}, "image": {"depth": 1, "width": 4}},
        "runs.proxy.network",
        "has encoders of text, image, 'digits-seen-written' has the modalities image, text: make them equal",
    ),
    (
        "networks/both/encoders/text",
        {"family": "ConvNet", "depth": 1, "width": 4},
        "experts.two.network",
        "has the family ConvNet for text, which is of kind text: choose from TextNet, Linear",
    ),
    (
        "networks/both/encoders/text",
        {"family": "TextNet", "kernel": 2},
        "networks.both.encoders.text",
        "kernel 2 has no character",
    ),
    (
        "networks/both/encoders/image",
        {"depth": 1, "width": 4, "norm": "batch"},
        "networks.both",
        "an encoder keeps running statistics",
    ),
    ("prepare/digits-seen-written/modalities/image/kind", "video", "prepare.digits-seen-written.modalities.image", "'video'"),
    ("prepare/digits-seen-written/zca_eps", 0.2, "prepare.digits-seen-written", "zca_eps are of images in classes: leave"),
    (
        "prepare/digits-seen-written/modalities/text",
        {"kind": "features", "encoder": "transformers", "weights": "bert", "size": 32},
        "prepare.digits-seen-written.modalities.text",
        "size is of pictures, and transformers reads texts: leave it out",
    ),
    (
        "prepare/digits-seen-written/modalities/image",
        {"kind": "features", "encoder": "resnet18", "weights": "own.pth", "tokens": 32},
        "prepare.digits-seen-written.modalities.image",
        "tokens are of texts, and resnet18 reads pictures: leave them out",
    ),
    ("prepare/digits-seen-written/size", 8, "prepare.digits-seen-written", "size are of images in classes: leave them out"),
    ("prepare/digits-seen-written", IMAGES, "runs.proxy.network", "has the modalities none: make them equal"),
    ("experts/two/augmentation", ["crop"], "experts.two.augmentation", "is of images in classes"),
    ("experts/two/gradient_penalty", 1.0, "experts.two.gradient_penalty", "is of images in classes"),
    ("runs/proxy/distill/augmentation", ["crop"], f"{DISTILL}.augmentation", "is of images in classes"),
    ("runs/proxy/distill/labels", "expert", f"{DISTILL}.labels", "is of images in classes"),
    (
        "runs/proxy/distill/initialisation",
        "representative",
        f"{DISTILL}.initialisation",
        "needs classes: tuples begin by one of",
    ),
    ("runs/proxy/distill/lr_modalities", {"text": 1.0}, f"{DISTILL}.lr_modalities", "must name the modalities image, text"),
    ("runs/proxy/distill/iterations", 0, f"{DISTILL}.similarity", "is learned over iterations, which are 0"),
    ("runs/proxy/distill/similarity", {"kind": "proxy"}, f"{DISTILL}.similarity.lr", "missing"),
    ("runs/proxy/distill/target", "nearest", DISTILL, "normalised 'modality' is of encoders that are matched at fixed steps"),
    ("runs/proxy/distill/unmatched_depth", 0.5, f"{DISTILL}.unmatched_depth", "is of images in classes"),
    ("evaluate/short/augmentation", ["crop"], "runs.proxy.evaluate", "evaluate.short.augmentation is of images in classes"),
]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("left/right", "can't be a name: take letters, digits"),
        ("nul", "can't be a name: take letters, digits"),
        ("similarity", "can't be a name: exports have another tensor called similarity, so take another word"),
        ("syn_lr", "can't be a name: exports have another tensor called syn_lr"),
    ],
)
def test_modalities_have_names_that_files_and_tensors_can_have(name: str, sentence: str) -> None:
    raw = tuples.params()
    own = raw["prepare"]["digits-seen-written"]
    own["modalities"] = {name: own["modalities"]["image"], "text": own["modalities"]["text"]}
    assert problems(raw)[f"prepare.digits-seen-written.modalities.{name}"].startswith(sentence)


@pytest.mark.parametrize(("at", "value", "where", "sentence"), WRONG)
def test_what_does_not_go_together_is_told_where_it_stands(at: str, value: Any, where: str, sentence: str) -> None:
    found = problems(put(tuples.params(), at, value))
    assert where in found, found
    assert sentence in found[where]


PROXY, LOW_RANK = ({"kind": kind, "rank": 3, "lr": 1.0} for kind in ("proxy", "low_rank"))


@pytest.mark.parametrize(
    ("its", "mine", "sentence"),
    [
        (None, LOW_RANK, "has similarity null, this one has low_rank of rank 3"),
        (LOW_RANK, None, "has similarity low_rank of rank 3, this one has null"),
        (LOW_RANK, PROXY, "has similarity low_rank of rank 3, this one has proxy of rank 3"),
        (PROXY, {**PROXY, "rank": 2}, "has similarity proxy of rank 3, this one has proxy of rank 2"),
        (PROXY, {**PROXY, "lr": 2.0, "scale": 3.0}, None),
        (None, None, None),
    ],
)
def test_a_run_begins_with_a_similarity_like_its_own(its: Any, mine: Any, sentence: str | None) -> None:
    """Whose numbers come with the set: others could not be read as its own."""
    raw = tuples.later(tuples.params())
    raw["runs"]["proxy"]["distill"]["similarity"] = its
    raw["runs"]["later"]["distill"]["similarity"] = mine
    if sentence is None:
        assert parse(raw).distillations["later"].initial_run == "proxy"
    else:
        assert sentence in problems(raw)["runs.later.distill.initial_run"]


OF_TUPLES: list[tuple[str, Any, str]] = [
    ("experts/smooth/contrast", {}, "experts.smooth.contrast"),
    ("runs/one/distill/contrast", {}, "runs.one.distill.contrast"),
    ("runs/one/distill/similarity", {"kind": "proxy", "lr": 1.0}, "runs.one.distill.similarity"),
    ("runs/one/distill/lr_modalities", {"image": 1.0}, "runs.one.distill.lr_modalities"),
    ("runs/one/distill/normalised", "modality", "runs.one.distill.normalised"),
    ("evaluate/mtt/contrast", {}, "runs.one.evaluate"),
]


@pytest.mark.parametrize(("at", "value", "where"), OF_TUPLES)
def test_images_in_classes_have_nothing_of_tuples(at: str, value: Any, where: str, valid_params: dict[str, Any]) -> None:
    found = problems(put(valid_params, at, value))
    assert "tuples" in found[where]


PRESETS = presets.load()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name: str) -> None:
    preset = PRESETS[name]
    params = parse({"seed": 0, **preset.sections})
    assert tuple(params.runs) == preset.runs
    assert preset.status in ("ours", "published")
    assert all(params.prepare[run.dataset].modalities for run in params.runs.values())


def test_digits_are_compared_in_every_way() -> None:
    for name in ("digits-seen-written", "digits-seen-written-spoken"):
        kinds = ("identity", "low-rank", "proxy", "random", "herding", "k-center")
        assert PRESETS[name].runs == (*(f"{name}-{count}-{kind}" for count in (10, 50) for kind in kinds), f"{name}-whole")


@pytest.mark.parametrize(
    ("name", "pairs", "rank", "scale", "lr", "lr_img", "figure"),
    [
        ("flickr30k-100-lors", 99, 10, 3.0, 10.0, 100.0, "TR 11.8 35.8 49.2, IR 8.3 24.1 35.1"),
        ("flickr30k-200-lors", 199, 5, 1.0, 10.0, 1000.0, "TR 14.5 38.7 53.4, IR 8.6 25.3 36.6"),
        ("flickr30k-500-lors", 499, 20, 0.01, 100.0, 1000.0, "TR 15.5 39.8 53.7, IR 10.0 28.9 41.6"),
        ("coco-100-lors", 99, 10, 1.0, 5.0, 1000.0, "TR 3.3 12.2 19.6, IR 1.8 7.1 12.2"),
        ("coco-500-lors", 499, 40, 1.0, 500.0, 5000.0, "Its published recall is not noted here"),
        ("flickr30k-100-mtt-vl", 100, None, None, None, 1000.0, "TR 9.9 28.3 39.1, IR 4.7 15.7 24.6"),
        ("coco-100-mtt-vl", 100, None, None, None, 1000.0, "TR 2.5 10.0 15.7, IR 1.3 5.4 9.5"),
    ],
)
def test_published_settings(
    name: str, pairs: int, rank: int | None, scale: float | None, lr: float | None, lr_img: float, figure: str
) -> None:
    params = parse({"seed": 0, **PRESETS[name].sections})
    distil = params.distillations[name]
    assert params.runs[name].ipc == pairs
    assert (distil.syn_steps, distil.expert_epochs, distil.lr_lr, distil.lr_init) == (8, 1, 0.01, 0.1)
    merged = name.startswith("coco") and name.endswith("lors")  # the branches of the loss, by --merge_loss_branches
    assert (distil.lr_img, distil.normalised, distil.outer_momentum) == (lr_img, "all" if merged else "modality", 0.5)
    found = distil.similarity
    assert (found and (found.rank, found.scale, found.lr)) == (rank and (rank, scale, lr))
    assert distil.gradient == ("tesla" if rank else "exact")
    assert any(figure in line for line in PRESETS[name].about)


def test_a_preset_is_shown_and_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    for words in ("list", "show digits-seen-written", "add digits-seen-written"):
        monkeypatch.setattr(sys, "argv", ["src.cli", "preset", *words.split()])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
    told = capsys.readouterr().out
    assert "of tuples: digits-seen-written, digits-seen-written-spoken, flickr30k-100-mtt-vl" in told
    assert "next: dvc repro evaluate@digits-seen-written-10-proxy" in told
    assert "digits-seen-written-whole" in load().runs
