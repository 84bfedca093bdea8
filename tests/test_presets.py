"""Presets: every one is valid and adds itself to params.yaml; the published ones say what their papers say."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from src.editing import params_edit, presets
from src.settings.distillation import Distillation
from src.settings.params import load, parse
from tests.called import command
from tests.imports import ROOT

PRESETS = presets.load()
DSA = ("color", "crop", "cutout", "flip", "scale", "rotate")

# steps, M, start epochs below, lr_img, lr_lr, batch, lr_init, ZCA, and the published accuracy to compare with
CELLS: dict[str, tuple[Any, ...]] = {
    "cifar10-ipc1-mtt": (50, 2, 2, 100, 1e-7, None, 0.01, True, 46.2),
    "cifar10-ipc10-mtt": (30, 2, 20, 100, 1e-5, None, 0.001, True, 65.4),
    "cifar10-ipc50-mtt": (30, 2, 40, 1000, 1e-5, None, 0.001, False, 71.6),
    "cifar100-ipc1-mtt": (20, 3, 20, 1000, 1e-5, None, 0.01, True, 24.3),
    "cifar100-ipc10-mtt": (20, 2, 20, 1000, 1e-5, None, 0.01, False, 39.7),
    "cifar100-ipc50-mtt": (80, 2, 40, 1000, 1e-5, 125, 0.01, False, 47.7),
    "tiny-imagenet-ipc1-mtt": (10, 2, 10, 10000, 1e-4, None, 0.01, False, 8.8),
    "tiny-imagenet-ipc10-mtt": (20, 2, 40, 10000, 1e-4, 200, 0.01, False, 23.2),
    "tiny-imagenet-ipc50-mtt": (20, 2, 40, 10000, 1e-4, 300, 0.01, False, 28.0),
    "cifar10-ipc10-ast": (30, 2, 20, 100, 1e-6, None, 0.01, True, 65.4),
    "cifar100-ipc1-ast": (20, 3, 20, 1000, 1e-5, None, 0.01, True, 24.3),
    "cifar100-ipc1-ast-no-zca": (40, 3, 15, 100, 1e-5, None, 0.01, False, 24.3),
    "cifar100-ipc10-ast": (20, 2, 30, 1000, 1e-5, 128, 0.01, False, 39.7),
    "cifar100-ipc50-ast": (80, 2, 40, 1000, 1e-5, 700, 0.01, False, 47.7),
    "tiny-imagenet-ipc1-ast": (10, 2, 10, 10000, 1e-4, None, 0.01, False, 8.8),
}
# steps, M, start epochs below, lr_img, lr_lr, lr_init, ZCA, running mean, and the method whose accuracy there is
METHODS: dict[str, tuple[Any, ...]] = {
    "cifar10-ipc1-ftd": (50, 2, 2, 100, 1e-7, 0.01, True, 0.9999, "FTD", 46.8),
    "cifar10-ipc10-ftd": (30, 2, 20, 100, 1e-5, 0.001, True, 0.9995, "FTD", 66.6),
    "cifar10-ipc50-ftd": (30, 2, 40, 1000, 1e-5, 0.001, False, 0.999, "FTD", 73.8),
    "tiny-imagenet-ipc10-ftd": (20, 2, 40, 10000, 1e-4, 0.01, False, 0.999, "FTD", 24.5),
    "cifar10-ipc1-tesla": (50, 2, 5, 500, 1e-7, 0.01, True, None, "TESLA", 48.5),
    "cifar10-ipc10-datm": (80, 2, 20, 100, 1e-5, 0.01, True, None, "DATM (soft labels)", 66.8),
    "cifar100-ipc10-datm": (80, 2, 50, 1000, 1e-5, 0.01, True, None, "DATM (soft labels)", 47.2),
    "cifar10-ipc1-att": (80, 4, 2, 100, 1e-7, 0.01, True, 0.9999, "ATT", 48.3),
    "cifar10-ipc10-att": (30, 2, 20, 10000, 1e-4, 0.01, True, 0.9999, "ATT", 67.7),
    "cifar100-ipc50-att": (80, 2, 40, 1000, 1e-5, 0.01, True, 0.999, "ATT", 51.2),
    "tiny-imagenet-ipc10-att": (20, 2, 40, 10000, 1e-6, 0.001, False, 0.999, "ATT", 25.8),
    "imagenette-ipc1-att": (20, 2, 10, 10000, 5e-8, 0.01, False, 0.9999, "ATT", 52.4),
}
# representative, balance, intermediate, perturb
PARTS = {
    "cifar10-ipc10-ast": (False, True, True, True),
    "cifar100-ipc1-ast": (True, True, True, True),
    "cifar100-ipc1-ast-no-zca": (True, False, True, True),
    "cifar100-ipc10-ast": (True, False, True, True),
    "cifar100-ipc50-ast": (True, False, False, False),
    "tiny-imagenet-ipc1-ast": (False, False, True, True),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def parsed(name: str) -> tuple[presets.Preset, Any]:
    preset = PRESETS[name]
    return preset, parse({"seed": 0, **preset.sections})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_by_itself(name: str) -> None:
    preset, params = parsed(name)
    *before, last = params.runs
    assert (last, bool(before)) == (name, preset.method == "matching-then-real")
    name = before[0] if before else name  # whose images it begins with
    run, experts = params.runs[name], params.experts.get(params.runs[name].experts)
    quick = preset.family.endswith("-quick")
    assert params.prepare[run.dataset].source == preset.family.removesuffix("-quick").replace("-", "_")
    assert name.startswith(preset.family)
    assert preset.status in ("published", "ours")
    assert preset.source
    assert bool(preset.experts) == params.distillations[name].matches
    if preset.experts:
        assert experts is not None
        distil: Distillation = params.distillations[name]
        assert preset.epochs == distil.last_epoch
        epochs = 100 if preset.method in ("datm", "pad") else 50
        iterations = 10000 if preset.method in ("datm", "pad", "tesla") else 5000
        expected = (100, 100, epochs, 6000 if name == "cifar10-ipc1-att" else iterations)
        if quick:
            expected = (4, 4, 10, 100) if preset.family.startswith("fashion") else (8, 8, 10, 500)
        elif name.endswith("-w32"):
            expected = (10, 10, 50, 1000)
        elif name.endswith("-cpu"):
            count = 20 if name == "fashion-mnist-ipc1-mtt-cpu" else 10
            expected = (count, count, 50, 300 if preset.family == "fashion-mnist" else 2000)
        elif name.endswith("-cpu32"):
            expected = (32, 32, 50, 2000)
        elif name.endswith("-cpu3"):
            expected = (3, 3, 50, 400 if name == "cifar10-ipc10-mtt-cpu3" else 300)
        elif name.endswith("-buffer-sh"):
            expected = (50, 50, 50, 5000)
        assert (preset.experts, experts.count, experts.epochs, distil.iterations) == expected
        assert experts.augmentation == distil.augmentation == params.evaluate[run.evaluate].augmentation
        assert ("flip" in distil.augmentation) == (preset.family not in ("mnist", "svhn"))


def test_all_presets_fit_into_one_file(folder: Path) -> None:
    """Shared names mean the same everywhere, and nothing collides with the repository's own settings."""
    together: dict[str, dict[str, Any]] = {}
    for preset in PRESETS.values():
        for section, entries in preset.sections.items():
            for name, settings in entries.items():
                assert together.setdefault(section, {}).setdefault(name, settings) == settings
    digits = load()
    assert len(params_edit.add(together)) == sum(len(entries) for entries in together.values()) - 1  # `real` is there
    params = load()
    assert list(params.runs) == [*digits.runs, *PRESETS]
    assert all(params.distillations[name] == parsed(name)[1].distillations[name] for name in PRESETS)
    assert params_edit.add(together) == []


@pytest.mark.parametrize("name", CELLS)
def test_published_settings(name: str) -> None:
    preset, params = parsed(name)
    distil, run = params.distillations[name], params.runs[name]
    steps, epochs, start, lr_img, lr_lr, batch, lr_init, zca, accuracy = CELLS[name]
    assert (distil.syn_steps, distil.expert_epochs, distil.max_start_epoch) == (steps, epochs, start)
    assert (distil.lr_img, distil.lr_lr, distil.lr_init, distil.batch_syn) == (lr_img, lr_lr, lr_init, batch)
    assert (distil.iterations, distil.outer_momentum, distil.augmentation) == (5000, 0.5, DSA)
    assert (params.prepare[run.dataset].whitening, params.prepare[run.dataset].zca_eps) == ("zca" if zca else "none", 0.1)
    assert params.networks[run.network].depth == (4 if name.startswith("tiny") else 3)
    assert params.networks[run.network].width == 128
    assert (preset.status, preset.compare, preset.published["MTT"]) == ("published", "MTT", accuracy)
    assert not [method for method in preset.published if "AST" in method]


@pytest.mark.parametrize("name", METHODS)
def test_published_settings_of_other_methods(name: str) -> None:
    preset, params = parsed(name)
    distil = params.distillations[name]
    *numbers, zca, ema, method, accuracy = METHODS[name]
    fields = ("syn_steps", "expert_epochs", "max_start_epoch", "lr_img", "lr_lr", "lr_init")
    assert [getattr(distil, field) for field in fields] == numbers
    assert (params.prepare[params.runs[name].dataset].whitening == "zca", distil.ema) == (zca, ema)
    assert (preset.status, preset.compare, preset.published[method]) == ("published", method, accuracy)
    assert (params.matched(name)[1].sharpness == 0.01) == (method == "FTD" or method.startswith("DATM"))
    assert (distil.target == "nearest") == (method == "ATT")
    assert (distil.gradient == "tesla") == (method == "TESLA")
    assert (distil.labels == "learned") == (distil.initialisation == "classified") == method.startswith("DATM")


def test_datms_labels_and_batches() -> None:
    """By the configurations of its public code: lr_y, batch_syn and the growth of the window."""
    wanted = {
        "cifar10-ipc1-datm": (5.0, None, None),
        "cifar10-ipc10-datm": (2.0, None, 1000),
        "cifar10-ipc50-datm": (2.0, None, 2000),
        "cifar10-ipc1000-datm": (10.0, 1000, None),
        "cifar100-ipc10-datm": (10.0, None, 2000),
    }
    for name, expected in wanted.items():
        distil = parsed(name)[1].distillations[name]
        growth = distil.start_growth and distil.start_growth.iterations
        assert (distil.lr_label, distil.batch_syn, growth) == expected


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith(("-cpu", "-cpu3", "-cpu32", "-w32"))])
def test_a_small_variant_is_its_preset_with_fewer_experts_and_iterations(name: str) -> None:
    (_, small), (_, large) = parsed(name), parsed(name.rsplit("-", 1)[0])
    run, whole, variant = name, *name.rsplit("-", 1)
    behind, other = (one.partition(f"-{PRESETS[name].method}")[2] for one in (name, whole))  # as -buffer-sh-w32 and -buffer-sh
    few, many = (params.experts.get(params.runs[one].experts) for params, one in ((small, run), (large, whole)))
    if few is not None and many is not None:
        assert small.runs[run].experts == f"{str(large.runs[whole].experts).removesuffix(other)}{behind}"
        assert small.runs[run].network == few.network
        changed = {"count", "stop_epoch", "gradient_penalty_axes"} | ({"network"} if variant == "w32" else set())
        assert few.model_dump(exclude=changed) == many.model_dump(exclude=changed)
        # by image a penalty of CIFAR-100's experts diverges: in the fourth step, in float32 and bfloat16, from width 32
        by_image = few.gradient_penalty > 0 and not name.startswith("cifar100")
        assert few.gradient_penalty_axes == ("image" if by_image else "channels")
    assert (few is None) == (many is None) == (small.runs[run].experts is None)
    assert (small.runs[run].network == large.runs[whole].network) == (variant != "w32")
    distil = small.distillations[run]
    own = ("iterations", "snapshot_every", "max_start_epoch", "initial_run")
    if variant == "cpu3":  # so few iterations begin near the rates that others end with
        own += ("syn_steps", "lr_img", "lr_lr", "lr_init")
    kept = {name: getattr(distil, name) for name in own}
    assert distil == large.distillations[whole].model_copy(update=kept)
    assert distil.max_start_epoch == large.distillations[whole].max_start_epoch or variant in ("w32", "cpu3")


@pytest.mark.parametrize("name", PARTS)
def test_the_other_reading_of_ast_s_code_has_experts_that_are_not_smooth(name: str) -> None:
    """buffer.sh passes neither the clipping loss nor the penalty, and 50 experts, where the README has 100 with both."""
    (_, readme), (preset, script) = parsed(name), parsed(f"{name}-buffer-sh")
    smooth, other = readme.matched(name)[1], script.matched(preset.name)[1]
    assert (smooth.count, smooth.clipping_loss, smooth.gradient_penalty) == (100, True, 2.0)
    assert other == smooth.model_copy(update={"count": 50, "clipping_loss": False, "gradient_penalty": 0.0})
    rates = {"lr_img": 1000.0, "lr_lr": 1e-5} if name == "cifar10-ipc10-ast" else {}
    assert script.distillations[preset.name] == readme.distillations[name].model_copy(update=rates)


def test_no_other_cell_is_called_published() -> None:
    others = {name for name, preset in PRESETS.items() if preset.method in ("ftd", "tesla", "datm", "att")}
    others |= {f"{name}-buffer-sh" for name in PARTS}
    quick = {name for name in others if "quick" in name}
    assert {name for name, preset in PRESETS.items() if preset.status == "published"} == {*CELLS, *others - quick}
    assert set(METHODS) <= others


@pytest.mark.parametrize("name", [name for name in CELLS if "-mtt" in name])
def test_mtt_has_no_part_of_ast(name: str) -> None:
    _, params = parsed(name)
    distil, experts = params.distillations[name], params.matched(name)[1]
    assert (distil.initialisation, distil.balanced_loss, distil.intermediate_loss) == ("random", False, "off")
    assert (distil.weight_perturbation, distil.inner_momentum) == (0, 0)
    assert (experts.optimiser, experts.lr, experts.momentum, experts.weight_decay, experts.batch_size) == (
        "sgd",
        0.01,
        0,
        0,
        256,
    )
    assert (experts.clipping_loss, experts.gradient_penalty, experts.lr_drop_factor) == (False, 0, 1)


@pytest.mark.parametrize("variant", ["", "-cpu32"])
def test_ast_student_is_mtt_with_parts_3_5_and_6(variant: str) -> None:
    (_, student), (_, mtt) = parsed(f"cifar10-ipc1-ast-student{variant}"), parsed(f"cifar10-ipc1-mtt{variant}")
    assert student.experts == mtt.experts  # so that runs of both share them
    parts = {"initialisation": "representative", "intermediate_loss": "ramp", "weight_perturbation": 1.0}
    (ours,), (theirs,) = student.distillations.values(), mtt.distillations.values()
    assert ours == theirs.model_copy(update=parts)


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_ast(name: str) -> None:
    _, params = parsed(name)
    distil, experts = params.distillations[name], params.matched(name)[1]
    representative = distil.initialisation == "representative"
    parts = (representative, distil.balanced_loss, distil.intermediate_loss != "off", distil.weight_perturbation == 1)
    assert parts == PARTS[name]
    assert distil.inner_momentum == 0.9
    assert (experts.lr, experts.momentum, experts.weight_decay, experts.lr_drop_factor) == (0.003, 0.9, 1e-3, 0.6)
    assert (experts.clipping_loss, experts.clipping_start, experts.clipping_end, experts.clipping_epochs) == (
        True,
        0.5,
        0.95,
        10,
    )
    assert (experts.gradient_penalty, experts.gradient_penalty_axes) == (2, "channels")


COMPARED = [
    ("cifar10-ipc10-random", "random", 31.0), ("cifar100-whole", "whole", 56.2), ("tiny-imagenet-ipc50-random", "random", 15.0),
    ("fashion-mnist-ipc10-ast", "DSA", 84.6), ("mnist-ipc50-ast", "DSA", 99.2), ("svhn-ipc1-ast", "DSA", 27.5),
    ("imagenette-ipc10-ast", "MTT", 63.0), ("imagewoof-ipc1-mtt", "MTT", 28.6), ("cifar10-ipc50-ast", "MTT", 71.6),
]  # fmt: skip


@pytest.mark.parametrize(("name", "method", "accuracy"), COMPARED)
def test_accuracies_to_compare_with(name: str, method: str, accuracy: float) -> None:
    preset = PRESETS[name]
    assert (preset.status, preset.compare, preset.published[method]) == ("ours", method, accuracy)


BEGUN = {  # preset -> the runs that it begins with, one with another, its syn_lr, the experts and epochs that are matched
    "cifar10-ipc1-matching-then-real-cpu": (["cifar10-ipc1-mtt-cpu"], 0.0024, 10, 3),
    "cifar10-ipc10-matching-then-real-cpu": (["cifar10-ipc10-ast-w32", "cifar10-ipc10-matching-then-real-w32"], None, 10, 11),
    "cifar100-ipc1-matching-then-real-cpu": (
        ["cifar100-ipc1-ast-buffer-sh-w32", "cifar100-ipc1-matching-then-real-w32"],
        None,
        10,
        7,
    ),
    "fashion-mnist-ipc10-matching-then-real-cpu": (
        ["fashion-mnist-ipc10-ast-w32", "fashion-mnist-ipc10-matching-then-real-w32"],
        None,
        10,
        11,
    ),
}


@pytest.mark.parametrize("name", BEGUN)
def test_a_run_that_begins_with_another_ones_images_brings_it_along(name: str) -> None:
    (before, syn_lr, *experts), (preset, params) = BEGUN[name], parsed(name)
    assert list(params.runs) == [*before, name]
    assert all(PRESETS[before[-1]].sections[section].items() <= own.items() for section, own in preset.sections.items())
    distil, run = params.distillations[name], params.runs[name]
    assert (distil.initialisation, distil.initial_run, distil.lr_init) == ("run", before[-1], syn_lr)
    assert (distil.objective, distil.matches, preset.experts, preset.epochs) == ("real", False, *experts)
    assert distil.inner_momentum == params.evaluate[run.evaluate].momentum
    assert run.network == "ConvNetD3W128", "the preset's own network, whatever the first run's"


def test_baselines_match_no_experts() -> None:
    _, params = parsed("cifar10-whole")
    assert (params.runs["cifar10-whole"].ipc, params.distillations["cifar10-whole"].iterations) == ("all", 0)
    assert PRESETS["cifar10-whole"].experts == PRESETS["mnist-ipc1-random"].experts == 0
    assert params.runs["cifar10-whole"].experts is None
    assert params.experts == {}
    assert parsed("cifar10-ipc1-k-means")[1].runs["cifar10-ipc1-k-means"].experts == "cifar10-zca-mtt"  # which choose


def test_the_short_whole_set_is_the_whole_set_of_fewer_epochs() -> None:
    (_, short), (_, whole) = parsed("cifar10-whole-short"), parsed("cifar10-whole")
    ours, theirs = (params.evaluate[run.evaluate] for params in (short, whole) for run in params.runs.values())
    assert (ours, theirs.epochs) == (theirs.model_copy(update={"epochs": 6}), 50)
    assert PRESETS["cifar10-whole-short"].compare == "whole"


def test_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("preset list", monkeypatch) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PRESETS)
    assert command("preset list --dataset cifar100 --method ast", monkeypatch) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "ast" in line]
    assert [row[0] for row in rows] == [name for name in PRESETS if name.startswith("cifar100-ipc") and "-ast" in name]
    assert rows[0] == ["cifar100-ipc1-ast", "cifar100", "1", "ast", "published", "MTT", "24.3", "100", "x", "22"]


def test_show_is_the_yaml_that_add_adds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "tiny-imagenet-ipc10-ast"
    assert command(f"preset show {name}", monkeypatch) == 0
    shown = capsys.readouterr().out
    assert YAML(typ="safe").load(shown) == PRESETS[name].sections
    assert "arXiv 2310.10541" in shown
    assert "a starting point, to be tuned" in shown
    assert "MTT 23.2" in shown
    assert command(f"preset add {name}", monkeypatch) == 0
    said = capsys.readouterr().out
    assert "prepare.tiny-imagenet, networks.ConvNetD4W128, experts.tiny-imagenet-smooth, distill.ast-published" in said
    assert f"dvc repro evaluate@{name}" in said
    text = Path("params.yaml").read_text(encoding="utf-8")
    assert all(line in text for line in params_edit.text_of(PRESETS[name].sections).splitlines())
    assert "# AST parts 1 and 2" in text
    assert command(f"preset add {name}", monkeypatch) == 0
    assert f"has all of {name} already" in capsys.readouterr().out
    assert Path("params.yaml").read_text(encoding="utf-8") == text


def test_fewer_experts(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("preset add cifar10-ipc10-ast --experts 5", monkeypatch) == 0
    assert load().experts["cifar10-zca-smooth"].count == 5
    capsys.readouterr()
    before = Path("params.yaml").read_bytes()
    assert command("preset add cifar10-ipc1-ast", monkeypatch) == 1
    assert "experts.cifar10-zca-smooth (count is 5, would be 100)" in capsys.readouterr().err
    assert command("preset add cifar10-whole --experts 5", monkeypatch) == 1
    assert "matches no experts" in capsys.readouterr().err
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("preset show cifar10-ipc11-ast", "no preset is named 'cifar10-ipc11-ast': did you mean cifar10-ipc1-ast, "),
        ("preset add qqq", "no preset is named 'qqq': `python -m src.cli preset list` shows all"),
        (
            "preset list --dataset cifar",
            "no preset is for 'cifar': choose one of cifar10, cifar10-quick, cifar100, fashion-mnist",
        ),
        (
            "preset list --method dc",
            "no preset is for 'dc': choose one of ast, ast-student, att, datm, ftd, k-means, matching-then-real, mtt, ",
        ),
    ],
)
def test_unknown_names(words: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(words, monkeypatch) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
