"""methods: runs of one cell in one table; figures follow from their variants, seeds are honest, a kill loses nothing."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution
from ruamel.yaml import YAML

from src.editing import groups, params_edit
from src.ground.errors import UserError
from src.maths import significance
from src.settings import resolved
from src.settings.params import Params, load, parse
from src.settings.studies import Range, Ranges
from src.store import busy
from src.store.store import Store
from src.studies import ablate, method_groups, methods, repeated, space
from src.studies.methods import Tuned
from src.studies.variants import Changes, Variant, Workspace
from src.tracking.tracker import Nest
from tests import studying
from tests.called import command
from tests.imports import ROOT
from tests.small_run import STORE
from tests.studying import RUN, call
from tests.test_tune import until

RUNS = ("mtt", RUN, "real", "then-real")
CLIPPING = ("clipping_loss", "clipping_start", "clipping_end", "clipping_epochs")
PARTS = ("initialisation", "intermediate_loss", "weight_perturbation")  # 3, 5 and 6


def raw_params() -> dict[str, Any]:
    """Four methods of one cell: AST and MTT on experts of the same settings, the loss on real images, and that after MTT."""
    raw = studying.raw_params(students=2, rungs=1)
    raw["experts"]["other-name"] = dict(raw["experts"]["digits-smooth"])
    short = {"iterations": 3, "syn_steps": 3, "lr_img": 1.0}
    real = {"objective": "real", "real": {"images": 16, "students": 2}, "method": "mtt", **short}
    common = {key: raw["runs"][RUN][key] for key in ("dataset", "network", "ipc", "evaluate")}
    raw["runs"][RUN]["distill"] |= short
    raw["runs"]["mtt"] = {**common, "experts": "other-name", "distill": {"method": "mtt", **short}}
    raw["runs"]["real"] = {**common, "experts": None, "distill": real}
    begins = {"initialisation": "run", "initial_run": "mtt", "lr_init": None}
    raw["runs"]["then-real"] = {**common, "experts": None, "distill": {**real, **begins}}
    return raw


@pytest.fixture
def params() -> Params:
    return parse(raw_params())


def test_a_seed_has_a_beginning_of_its_own_by_tuned_settings(params: Params) -> None:
    mtt, _, _, then = methods.chosen(params, RUNS, None)
    tuned = {"mtt": Tuned(Changes({"lr_img": 7.0})), "then-real": Tuned(Changes({"lr_img": 2.0}))}
    begun, alone = (methods._of_seeds(run, params.tune, tuned, 3) for run in (then, mtt))
    assert [first.name for first, _ in begun] == [one.name for (one,) in alone], "MTT's own repetitions, made once"
    for first, last in begun:
        assert first.run.seed == last.run.seed != params.seed, "a seed of its own, under which nothing was chosen"
        assert last.run.initial == first.run and last.run.distillation.initial_run == first.name
        assert (first.run.distillation.lr_img, last.run.distillation.lr_img) == (7.0, 2.0)
    assert len({last.name for _, last in begun}) == len({last.run.seed for _, last in begun}) == 3


def test_runs_with_experts_of_the_same_settings_share_a_seed_s(params: Params) -> None:
    runs = methods.chosen(params, RUNS, None)
    lines = [methods._of_seeds(run, params.tune, {}, 2) for run in runs[:2]]
    assert [line[0].experts for line in lines[0]] == [line[0].experts for line in lines[1]]


def test_a_study_leaves_the_method_and_the_number_of_steps_alone_unless_told_otherwise(params: Params) -> None:
    mtt, *_ = methods.chosen(params, RUNS, None)
    found = space.build(mtt, methods.at_one_budget(mtt, params.tune), "student")
    plain = space.build(mtt, params.tune, "student")
    assert found["distill.syn_steps"] == CategoricalDistribution((3,)) and set(found) == set(plain)
    for name, value in (("initialisation", "random"), ("balanced_loss", False), ("intermediate_loss", "off")):
        assert found[f"distill.{name}"] == CategoricalDistribution((value,)), "MTT with a part of AST's is no MTT"
    assert found["distill.lr_img"] == plain["distill.lr_img"]
    asked = Ranges(distill={"syn_steps": Range(low=2, high=6)})
    told = params.tune.model_copy(update={"ranges": {mtt.dataset.name: asked}})
    held = methods.at_one_budget(mtt, told).ranges[mtt.dataset.name].distill
    assert held["syn_steps"] == asked.distill["syn_steps"] and {*held} == methods.HELD


REFUSED = [
    (("mtt",), None, "methods takes two different runs or more, and got mtt: name each once"),
    (("mtt", "real", "mtt"), None, "got mtt, real, mtt: name each once"),
    (("mtt", "real"), RUN, f"--against {RUN} is none of the runs of the table: name one of mtt, real"),
    (("mtt", "ten"), None, "one number of images per class, but mtt has 1 and ten has 10: name runs that agree"),
    (("mtt", "wide"), None, "one table has one network, but mtt has ConvNetD2W32 and wide has Wide"),
    (("mtt", "longer"), None, "one evaluation protocol, but mtt has mtt and longer has no-augmentation"),
]


@pytest.mark.parametrize(("names", "against", "sentence"), REFUSED)
def test_refusals(names: tuple[str, ...], against: str | None, sentence: str) -> None:
    raw = raw_params()
    raw["networks"]["Wide"] = {"depth": 2, "width": 64}
    own = raw["runs"]["real"]
    raw["runs"] |= {
        "ten": {**own, "ipc": 10},
        "wide": {**own, "network": "Wide"},
        "longer": {**own, "evaluate": "no-augmentation"},
    }
    with pytest.raises(UserError) as error:
        methods.chosen(parse(raw), names, against)
    assert sentence in str(error.value)


def table_of(folder: Path, trials: int, seeds: int, *names: str, **more: Any) -> Path:
    """A table that is there, in a clone say, with test accuracies."""
    figures = {split: [0.5] * seeds for split in ("val", "test")}
    rows = [{"run": name, "trials": trials, "seeds": figures, "problem": ""} for name in names]
    path = folder / "data/methods/digits-ipc1-ConvNetD2W32.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": [*rows, *more.get("rows", ())]}))
    return path


LOST = [
    ("mtt real", "--trials 0 --seeds 3 --test", f"the run {RUN}"),
    (f"mtt {RUN}", "--trials 0 --seeds 2 --test", "3 seeds"),
    (f"mtt {RUN}", "--trials 0 --seeds 3", "test figures (--test)"),
    (f"mtt {RUN}", "--trials 1 --seeds 4 --test", "settings by 0 trials"),
    (f"mtt {RUN}", "--seeds 2", "3 seeds, test figures (--test), settings by 0 trials"),
]


@pytest.mark.parametrize(("names", "options", "lost"), LOST)
def test_a_table_that_has_more_is_not_replaced_unasked(
    names: str,
    options: str,
    lost: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = table_of(tmp_path, 0, 3, "mtt", RUN)
    YAML(typ="safe").dump(raw_params(), tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    before = path.read_bytes()
    assert command(f"methods {names} {options}", monkeypatch) == 1
    sentence = " ".join(capsys.readouterr().err.split())
    assert f"has {lost}, and the table of this command would not: ask for all of it, or add --yes to replace it" in sentence
    assert path.read_bytes() == before
    assert command(f"methods {names} {options} --yes", monkeypatch) == 1
    assert "data/prepare/digits/statistics.json is missing" in capsys.readouterr().err, "it begins"


def test_a_table_that_grows_is_replaced(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By more seeds and methods, and figures for what failed; a damaged one has nothing to lose."""
    monkeypatch.setattr(methods.host, "workspace", lambda: tmp_path)
    methods.check(params, RUNS, None, 0, 2, True)
    path = table_of(tmp_path, 0, 3, "mtt", RUN, rows=[{"run": "gone", "trials": 5, "seeds": {}, "problem": "diverged"}])
    methods.check(params, ["mtt", RUN], "mtt", 0, 3, True)
    methods.check(params, RUNS, None, 0, 4, True)
    path.write_text("{")
    methods.check(params, ["mtt", "real"], None, 7, 2, False)


def test_an_overview_of_more_groups_is_not_replaced_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = groups.load()["methods-digits"]
    params = added(tmp_path, group.name)
    monkeypatch.setattr(methods.host, "workspace", lambda: tmp_path)
    path = tmp_path / "data/methods/overview.md"
    path.parent.mkdir(parents=True)
    path.write_text("# Methods\n\n| method | digits, 1 | digits, 10 | cifar10-quick, 1 |\n")
    with pytest.raises(UserError, match=r"overview.md has the tables cifar10-quick, 1 too: name their groups as well"):
        method_groups.run(Store(), params, [group], 0, 3, True, 1)
    path.write_text("# Methods\n\n| method | digits, 1 |\n")
    method_groups._check(params, [group])
    table_of(tmp_path, 0, 3, "another")
    with pytest.raises(UserError, match="has the run another, and the table of this command would not"):
        method_groups.run(Store(), params, [group], 0, 3, True, 1)


def test_imported_experts_are_of_one_seed(params: Params) -> None:
    digest = "0" * 64
    theirs = {**params.experts, "other-name": params.experts["other-name"].model_copy(update={"imported": digest})}
    sentence = "runs.mtt has the imported experts 'other-name', which no other seed can train again"
    with pytest.raises(UserError, match=sentence):
        methods.chosen(replace(params, experts=theirs), ["real", "then-real"], None)
    with pytest.raises(UserError, match=sentence):
        ablate.run(STORE, resolved.run(replace(params, experts=theirs), "mtt"), params.tune, 2, False, 1)


def test_what_begins_with_another_takes_the_time_of_its_study_too(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = methods.chosen(params, ["mtt", "then-real"], None)
    seconds = {"mtt": 100.0, "then-real": 10.0}
    monkeypatch.setattr(methods, "_begun", lambda one, *rest: (one, ""))
    monkeypatch.setattr(methods, "_tune", lambda store, begun, *rest: Tuned(seconds=seconds[begun.name]))
    nowhere: Any = None
    found = methods._tune_all(STORE, runs, params.tune, nowhere, nowhere, 1, 1)
    assert {name: one.seconds for name, one in found.items()} == {"mtt": 100.0, "then-real": 110.0}


def test_a_lost_beginning_is_told_of_what_begins_with_it(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = methods.chosen(params, RUNS, None)
    monkeypatch.setattr(methods, "_tune", lambda store, base, *rest: Tuned(problem="diverged" if base.name == "mtt" else ""))
    found = methods._tune_all(STORE, runs, params.tune, None, None, 2, 1)  # type: ignore[arg-type]
    assert {name: one.problem for name, one in found.items()} == {
        "mtt": "diverged", RUN: "", "real": "", "then-real": "it begins with mtt, which failed",
    }  # fmt: skip


class Threads:
    """A pool of tasks in this process."""

    def submit(self, name: str, function: Callable[..., Any], *args: Any, inputs: Sequence[Path] = ()) -> Future[Any]:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function, *args)


def test_experts_that_fail_cost_their_own_variants_alone(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [
        line[-1] for name in (0, 2) for line in methods._of_seeds(methods.chosen(params, RUNS, None)[name], params.tune, {}, 2)
    ]

    def ready(variant: Variant, *rest: object) -> None:
        if variant == made[0]:
            raise UserError("diverged")

    monkeypatch.setattr(repeated.trials, "ready", ready)
    workspace, nest = Workspace(tmp_path / "work", tmp_path), Nest("digits-studies", {})
    assert repeated._ready(Threads(), made, workspace, nest) == {made[0].name: "diverged"}


def test_work_of_another_process_is_waited_for_by_a_sentence(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line, *_) = methods._of_seeds(methods.chosen(params, RUNS, None)[0], params.tune, {}, 2)
    in_use = f"distill {line[-1].name} {busy.BUSY}: wait for its end, or stop it"
    monkeypatch.setattr(repeated.processes, "side_by_side", lambda *_: contextlib.nullcontext(Threads()))
    monkeypatch.setattr(repeated.variants, "finished", lambda *_: None)
    monkeypatch.setattr(repeated.trials, "ready", lambda *_: None)
    monkeypatch.setattr(repeated, "_make", lambda *_, **__: in_use)
    with pytest.raises(UserError, match=f"{in_use}; the same command then goes on"):
        repeated.make("methods", params.runtime, {"one": [line]}, Workspace(tmp_path, tmp_path), Nest("", {}), ("val",), 1)


def test_figures_of_a_table(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = {"mtt": (0.5, 0.52, 0.51), "real": (0.6, 0.61, 0.63)}
    lines = {run.name: methods._of_seeds(run, params.tune, {}, 3) for run in methods.chosen(params, ("mtt", "real"), None)}
    monkeypatch.setattr(repeated, "means", lambda own, splits: {"val": seeds[own[0][-1].name.partition("-")[0]]})
    monkeypatch.setattr(methods, "_seconds", lambda own, splits: 60.0)
    tuned = {"mtt": Tuned(trials=5, seconds=60.0), "real": Tuned(Changes({"lr_img": 2.0}), 5), RUN: Tuned(problem="diverged")}
    found = methods.table(("mtt", "real", RUN), "mtt", tuned, lines, ("val",), {"mtt": "", "real": "", RUN: "diverged"})
    shown = list(methods._rows(found, "mtt"))
    p = f"{significance.paired(seeds['mtt'], seeds['real']).p:.2g}"
    assert shown == [
        ("mtt", "5", "51.0 ± 1.0", "-", "", "", "2 min 0 s", ""),
        ("real", "5", "61.3 ± 1.5", "-", "+10.3", p, "1 min 0 s", "beyond noise, against mtt"),
        (RUN, "0", "failed", "-", "", "", "0 s", "diverged"),
    ]


# -- groups


@pytest.mark.parametrize("name", groups.load())
def test_a_group_s_runs_have_one_budget_and_fit_into_a_table(name: str, tmp_path: Path) -> None:
    group, file = groups.load()[name], tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", file)
    params_edit.add(group.sections, file)
    params = load(file)
    assert list(group.tables) == [1, 10] and all(len(runs) == 10 for runs in group.tables.values())
    for ipc, names in group.tables.items():
        runs = {run.name.removeprefix(f"{name}-ipc{ipc}-"): run for run in methods.chosen(params, names, None)}
        assert next(iter(runs)) == "mtt"
        assert {(run.ipc, run.distillation.iterations, run.distillation.syn_steps) for run in runs.values()} == {
            (ipc, runs["mtt"].distillation.iterations, runs["mtt"].distillation.syn_steps)
        }
        experts = {method: run.experts.settings for method, run in runs.items() if run.buffer is not None}
        assert {(one.count, one.epochs, one.stop_epoch, one.batch_size) for one in experts.values()} == {
            (own.count, own.epochs, own.stop_epoch, own.batch_size) for own in [experts["mtt"]]
        }
        assert set(runs) - set(experts) == {"real", "matching-then-real"}
        clipped = {key: getattr(experts["ast"], key) for key in CLIPPING}
        assert clipped["clipping_loss"] and experts["ast-repaired"] == experts["mtt"].model_copy(update=clipped)
        assert experts["ftd"] == experts["datm"] == experts["mtt"].model_copy(update={"sharpness": 0.01})
        assert experts["tesla"] == experts["att"] == experts["ast-student"] == experts["mtt"]
        parts = {key: getattr(runs["ast"].distillation, key) for key in PARTS}
        assert runs["ast-repaired"].distillation == runs["mtt"].distillation.model_copy(update=parts)
        assert runs["ast-student"].distillation == runs["ast-repaired"].distillation
        assert runs["tesla"].distillation == runs["mtt"].distillation.model_copy(update={"gradient": "tesla"})
        assert runs["ftd"].distillation == runs["mtt"].distillation.model_copy(update={"ema": 0.99})
        assert runs["matching-then-real"].initial == runs["mtt"]
        for run in runs.values():
            space.build(run, params.tune, "student")
            assert len(methods._of_seeds(run, params.tune, {}, 2)) == 2


def test_a_group_is_added_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert command("preset add methods-digits --experts 4", monkeypatch) == 0
    said = capsys.readouterr().out
    assert "next: python -m src.cli methods methods-digits\n" in said
    assert {load().experts[f"methods-digits-{kind}"].count for kind in ("plain", "smooth", "clipped", "sharp")} == {4}
    assert command("preset show methods-digits", monkeypatch) == 0
    assert YAML(typ="safe").load(capsys.readouterr().out) == groups.load()["methods-digits"].sections


def added(folder: Path, *names: str) -> Params:
    """Parameters of the repository and of these groups."""
    shutil.copy(ROOT / "params.yaml", folder)
    for name in names:
        params_edit.add(groups.load()[name].sections, folder / "params.yaml")
    return load(folder / "params.yaml")


def test_names_of_a_command_are_groups_or_runs(tmp_path: Path) -> None:
    params = added(tmp_path, "methods-digits")
    assert [group.name for group in groups.asked(params, ["methods-digits"])] == ["methods-digits"]
    assert groups.asked(params, ["methods-digits-ipc1-mtt", "unknown"]) == []
    for names, sentence in (
        (["methods-digits", "digits-ipc1-ast"], "got the group methods-digits and digits-ipc1-ast: name either alone"),
        (
            ["methods-cifar10-quick"],
            "lacks runs of the group methods-cifar10-quick: `python -m src.cli preset add methods-cifar10",
        ),
    ):
        with pytest.raises(UserError) as error:
            groups.asked(params, names)
        assert sentence in str(error.value)


def test_an_overview_of_groups_has_each_table_s_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    group = groups.load()["methods-digits"]
    params = added(tmp_path, group.name)

    def found(store: object, params: Params, names: Sequence[str], *rest: object, yes: bool) -> list[methods.Row]:
        """Of each number of images per class MTT, AST beyond noise, and one that failed."""
        seeds = [{"test": (0.5, 0.52, 0.51)}, {"test": (0.61, 0.62, 0.6)}, {}]
        rows = [methods.Row(run, 1, {}, own, 1.0) for run, own in zip(names[:3], seeds, strict=True)]
        rows[1] = replace(rows[1], difference=significance.paired(seeds[0]["test"], seeds[1]["test"]))
        rows[2] = replace(rows[2], problem="diverged")
        return rows

    monkeypatch.setattr(methods, "run", found)
    monkeypatch.setattr(methods.host, "workspace", lambda: tmp_path)
    monkeypatch.setattr(Store, "load_statistics", lambda self, dataset: None)
    method_groups.run(Store(), params, [group], 1, 3, True, 1)
    text = (tmp_path / "data/methods/overview.md").read_text()
    assert [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(("| m", "| a"))
    ] == [
        ["method", "digits, 1", "digits, 10"],
        ["mtt", "51.0 ± 1.0", "51.0 ± 1.0"],
        ["ast", "61.0 ± 1.0 (+10.0*)", "61.0 ± 1.0 (+10.0*)"],
        ["ast-repaired", "failed", "failed"],
    ]
    assert "Test accuracy" in text and "3 seeds, in brackets the points above mtt" in text
    assert "61.0 ± 1.0 (+10.0*)" in capsys.readouterr().out


# -- the whole command


def results(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("data/methods/*/results/*.json")}


def rows(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "data/methods/digits-ipc1-ConvNetD2W32.json").read_text())
    return {row["run"]: row for row in found["rows"]}


@pytest.mark.slow
def test_killed_gone_on_with_and_called_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = studying.folder_of(tmp_path, raw_params())
    words = f"methods {' '.join(RUNS)} --trials 2 --seeds 2 --workers 2"
    command = [sys.executable, "-m", "src.cli", *words.split()]
    main = subprocess.Popen(command, cwd=folder, env=studying.environment(folder), stderr=subprocess.DEVNULL)
    until(lambda: len(results(folder)) >= 6)
    main.kill()
    main.wait()
    before = results(folder)
    done = call(folder, words)
    assert done.returncode == 0, done.stderr
    assert all(results(folder)[path] == changed for path, changed in before.items())
    assert not list(folder.glob("data/methods/*/data/prepare/digits/test.safetensors"))
    assert not (folder / "data/distill").exists(), "what then-real begins with was made in the workspace"
    found, made = rows(folder), results(folder)
    assert [row["trials"] for row in found.values()] == [2] * 4 and list(found) == list(RUNS)
    assert all(len(row["seeds"]["val"]) == 2 and not row["problem"] and row["seconds"] > 0 for row in found.values())
    assert (folder / "data/methods/digits-ipc1-ConvNetD2W32.md").read_text().count("\n| ") == 1 + 1 + 4
    for name, row in found.items():
        kept = [json.loads(path.read_text())["accuracies"]["val"] for path in made if path.name.startswith(f"{name}-")]
        assert set(row["seeds"]["val"]) <= {mean(one) for one in kept}
        if name != "mtt":
            expected = significance.paired(found["mtt"]["seeds"]["val"], row["seeds"]["val"])
            assert row["difference"] == {"mean": expected.mean, "p": expected.p}
    again = call(folder, words)
    assert again.returncode == 0 and results(folder) == made and rows(folder) == found
    assert call(folder, f"{words} --test --against {RUN}").returncode == 0
    tested = rows(folder)
    assert all(set(row["seeds"]) == {"val", "test"} for row in tested.values())
    assert {name: row["seeds"]["val"] for name, row in tested.items()} == {n: row["seeds"]["val"] for n, row in found.items()}
    assert tested[RUN]["difference"] is None and tested["mtt"]["difference"]["p"] <= 1
