"""params.yaml: every problem found at once, each at the place in the file where it stands."""

from __future__ import annotations

import copy
import inspect
import re
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from src.ground.errors import ParamsError, UnknownNameError
from src.settings import base, datasets, distillation, experts, networks, protocols, report, runs, runtime, studies
from src.settings.params import Params, document, load, parse

Raw = dict[str, Any]
MODULES = (base, datasets, distillation, experts, networks, protocols, report, runs, runtime, studies)
FOUND = {one: None for module in MODULES for one in vars(module).values() if inspect.isclass(one)}
MODELS = [one for one in FOUND if issubclass(one, BaseModel) and one is not BaseModel]


def put(raw: Raw, path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for part in parents:
        raw = raw[part]
    raw[last] = value


def problems(raw: Any) -> list[tuple[str, str]]:
    with pytest.raises(ParamsError) as caught:
        parse(raw)
    for path, text in caught.value.problems:
        assert f"{path}: {text}" in str(caught.value)
    return list(caught.value.problems)


def paths(raw: Any) -> list[str]:
    return sorted(path for path, _ in problems(raw))


def test_valid(valid_params: Raw) -> None:
    params = parse(valid_params)
    assert params.seed == 0
    assert params.run("ten").ipc == 10
    assert params.distillations["one"].lr_img == 100
    assert params.distillations["ten"].lr_img == 10  # the run's own value goes before the method's
    assert params.distillations["ten"].augmentation == ("crop",)
    assert params.expert_set("smooth").epochs == 5
    assert params.dataset("digits").source == "digits"


def test_the_repositorys_own_file_is_valid() -> None:
    assert load(Path(__file__).parent.parent / "params.yaml").runs


def test_half_a_character_is_refused_wherever_it_stands(valid_params: Raw) -> None:
    """No file could hold it, nor could a sentence that repeats it be printed; the document may refer to itself."""
    half, whole = '"\\uD83D"', "\U0001f600"
    raw = document(f"report: &report {{title: {half}, of: *report}}\nprepare: [a, {{b: {half}, {whole}: {whole}}}]\n{half}: 0")
    rule = r"has half a character, as \ud800 is, which no file can hold: write it without that escape"
    found = ["\\ud83d", "report.title", "prepare.1.b"]
    assert problems(raw) == [(place, rule) for place in found]
    valid_params["report"] = {"title": whole}
    assert parse(valid_params).report.title == whole


@pytest.mark.parametrize("section", ["runtime", "report"])
def test_sections_with_defaults_may_be_left_out(section: str, valid_params: Raw) -> None:
    del valid_params[section]
    assert isinstance(parse(valid_params), Params)


@pytest.mark.parametrize("section", ["seed", "prepare", "networks", "experts", "distill", "evaluate", "runs"])
def test_other_sections_are_asked_for(section: str, valid_params: Raw) -> None:
    del valid_params[section]
    assert section in paths(valid_params)


@pytest.mark.parametrize(
    ("at", "value", "where", "says"),
    [
        ("extra", 1, "extra", "unknown section.*prepare"),
        ("seed", -1, "seed", "whole number.*-1"),
        ("seed", True, "seed", "whole number.*True"),
        ("runtime/threads", "many", "runtime.threads", "'many'"),
        ("runtime/threads", 1025, "runtime.threads", "less than or equal to 1024; got 1025"),
        ("distill/ast/syn_steps", 2**40, "distill.ast.syn_steps", f"less than or equal to 1000000; got {2**40}"),
        ("distill/ast/iterations", 2**40, "distill.ast.iterations", "less than or equal to 1000000"),
        ("experts/smooth/count", 2**40, "experts.smooth.count", "less than or equal to 1000000"),
        ("evaluate/mtt/students", 2**40, "evaluate.mtt.students", "less than or equal to 1000000"),
        ("runtime/device", "tpu", "runtime.device", "'cpu'.*'tpu'"),
        ("networks/D2/dept", 1, "networks.D2.dept", "unknown key.*depth"),
        ("networks/D2/depth", "two", "networks.D2.depth", "'two'"),
        ("networks/D2", None, "networks.D2", "None"),
        (
            "networks/D2/family",
            "VGG",
            "networks.D2.family",
            "ConvNet, MLP, LeNet, AlexNet, VGG11, ResNet18, Encoders; got 'VGG'",
        ),
        ("networks/D2/family", ["VGG11"], "networks.D2.family", "must be one of"),
        ("networks/D2/family", "VGG11", "networks.D2.depth", "unknown key: choose from family, width, norm$"),
        ("networks/D2/family", "LeNet", "networks.D2.width", "unknown key: choose from family$"),
        ("networks/D2/norm", "bach", "networks.D2.norm", "'batch'.*'bach'"),
        ("networks/D2/norm", "batch", "runs.one.network", "running statistics.*evaluated, not matched; use norm instance"),
        ("networks/D2/norm", "batch", "experts.smooth.network", "running statistics.*use norm instance"),
        ("runs/one/cross", ["D2"], "runs.one", "own network 'D2'"),
        ("runs/one/cross", ["D3", "D3"], "runs.one.cross", "twice in D3, D3"),
        ("runs/one/cross", ["D4"], "runs.one.cross", "'D4' is not in the section networks: choose one of D2"),
        ("runs/one/cross", "D4", "runs.one.cross", "'D4'"),
        ("runs/one/cross", [4], "runs.one.cross.0", "4"),
        ("evaluate/mtt/score", "best", "evaluate.mtt.score", "'best_test'.*'best'"),
        ("prepare/digits/source", "", "prepare.digits.source", "at least 1 character"),
        ("prepare/digits/path", "", "prepare.digits.path", "at least 1 character"),
        ("runtime/depot", "", "runtime.depot", "at least 1 character"),
        ("prepare/digits/source", 3, "prepare.digits.source", "string; got 3"),
        ("prepare/digits/val_fraction", 1.0, "prepare.digits.val_fraction", "1.0"),
        ("experts/smooth/lr", float("inf"), "experts.smooth.lr", "finite.*inf"),
        ("experts/smooth/lr", float("nan"), "experts.smooth.lr", "finite.*nan"),
        ("experts/smooth/lr", 10**400, "experts.smooth.lr", "number"),
        ("experts/smooth/momentum", 1.0, "experts.smooth.momentum", "less than 1"),
        ("evaluate/mtt/students", 1, "evaluate.mtt.students", "2"),
        ("runs/one/ipc", 0, "runs.one.ipc", "1"),
        ("runs/one/ipc", "some", "runs.one.ipc", "'all'.*'some'"),
        ("runs/one/ipc", True, "runs.one.ipc", "True"),
        ("runs/one/colour", 1, "runs.one.colour", "unknown key"),
        ("runs/one/dataset", "mnist", "runs.one.dataset", "'mnist'.*prepare.*digits"),
        ("runs/one/network", "D3", "runs.one.network", "'D3'.*networks.*D2"),
        ("runs/one/experts", "rough", "runs.one.experts", "'rough'.*experts.*smooth"),
        ("runs/one/evaluate", "own", "runs.one.evaluate", "'own'.*evaluate.*mtt"),
        ("runs/one/distill/method", "dm", "runs.one.distill.method", "'dm'.*distill.*ast"),
        ("runs/one/distill", {}, "runs.one.distill.method", "missing"),
        ("runs/one/distill", "ast", "runs.one.distill", "'ast'"),
        ("experts/smooth/dataset", "mnist", "experts.smooth.dataset", "'mnist'.*prepare.*digits"),
        ("experts/smooth/network", "D3", "experts.smooth.network", "'D3'.*networks.*D2"),
        ("runs/ten/distill/lr_img", "fast", "runs.ten.distill.lr_img", "'fast'"),
        ("distill/ast/start_growth", {"iterations": 4}, "distill.ast.start_growth.max_start_epoch", "is missing"),
        ("distill/ast/given", {"file": "x"}, "distill.ast.given.sha256", "is missing"),
        ("distill/ast/real", {"imagez": 4}, "distill.ast.real.imagez", "unknown key: choose from images, weight, students"),
        (
            "tune",
            {"ranges": {"digits": {"distil": {}}}},
            "tune.ranges.digits.distil",
            "unknown key: choose from distill, experts",
        ),
        ("runs/ten/distill/lr_image", 1.0, "runs.ten.distill.lr_image", "unknown key.*lr_img"),
        ("distill/ast/augmentation", ["crop", "blur"], "distill.ast.augmentation.1", "'flip'.*'blur'"),
        ("distill/ast/augmentation", "crop", "distill.ast.augmentation", "'crop'"),
        ("distill/ast/iterations", 3.0, "distill.ast.iterations", "integer.*3.0"),
        ("distill/ast", 7, "distill.ast", "7"),
    ],
)
def test_a_problem_is_reported_where_it_stands(at: str, value: Any, where: str, says: str, valid_params: Raw) -> None:
    put(valid_params, at, value)
    texts = [text for path, text in problems(valid_params) if path == where]
    assert len(texts) >= 1, problems(valid_params)
    assert re.search(says, texts[0])


def test_a_shared_problem_is_reported_once(valid_params: Raw) -> None:
    put(valid_params, "distill/ast/lr_lr", "fast")
    assert paths(valid_params) == ["distill.ast.lr_lr"]


def test_a_missing_field_is_asked_of_the_runs(valid_params: Raw) -> None:
    del valid_params["distill"]["ast"]["iterations"]
    assert paths(valid_params) == ["runs.one.distill.iterations", "runs.ten.distill.iterations"]


def test_all_problems_are_reported_at_once(valid_params: Raw) -> None:
    expected = ["evaluate.mtt.epoch", "experts.smooth.lr", "extra", "networks.D2.depth"]
    expected += ["distill.ast.lr_lr", "runs.one.ipc", "runs.ten.distill.lr_img", "runs.ten.evaluate", "seed"]
    for path in expected:
        put(valid_params, path.replace(".", "/"), "wrong")
    assert paths(valid_params) == sorted(expected)
    with pytest.raises(ParamsError, match=f"params.yaml has {len(expected)} problems"):
        parse(valid_params)


def test_a_name_in_one_section_hides_no_problem_in_another(valid_params: Raw) -> None:
    put(valid_params, "runs/ten/ipc", 0)
    put(valid_params, "runs/one/evaluate", "ten")
    assert paths(valid_params) == ["runs.one.evaluate", "runs.ten.ipc"]


def test_a_broken_entry_is_not_reported_as_absent_too(valid_params: Raw) -> None:
    put(valid_params, "networks/D2/depth", 0)
    assert paths(valid_params) == ["networks.D2.depth"]


def test_nor_is_one_whose_name_is_refused(valid_params: Raw) -> None:
    valid_params["experts"]["smooth.v1"] = {**valid_params["experts"].pop("smooth"), "lr": -1}
    for run in valid_params["runs"].values():
        run["experts"] = "smooth.v1"
    assert paths(valid_params) == ["experts.smooth.v1", "experts.smooth.v1.lr"]


def test_a_broken_run_does_not_make_its_method_look_incomplete(valid_params: Raw) -> None:
    del valid_params["distill"]["ast"]["iterations"]
    for run in valid_params["runs"].values():
        run["distill"]["iterations"] = 1
        run["ipc"] = 0
    assert paths(valid_params) == ["runs.one.ipc", "runs.ten.ipc"]


def test_what_a_method_leaves_out_its_runs_must_give(valid_params: Raw) -> None:
    del valid_params["distill"]["ast"]["iterations"]
    put(valid_params, "runs/one/distill/iterations", 7)
    [(path, text)] = problems(valid_params)
    assert (path, "missing" in text) == ("runs.ten.distill.iterations", True)
    put(valid_params, "runs/ten/distill/iterations", 8)
    assert [d.iterations for d in parse(valid_params).distillations.values()] == [7, 8]


def test_what_a_method_contradicts_its_runs_may_mend(valid_params: Raw) -> None:
    put(valid_params, "distill/ast/initialisation", "run")
    put(valid_params, "distill/ast/lr_init", None)
    together = "initialisation 'run' and initial_run go together"
    assert [(at, together in text) for at, text in problems(valid_params)] == [("distill.ast", True)]
    raw = copy.deepcopy(valid_params["runs"]["one"])
    raw["distill"] |= {"initialisation": "random", "lr_init": 0.01}
    put(valid_params, "runs/first", raw)
    put(valid_params, "runs/one/distill/initial_run", "first")
    assert [(at, together in text) for at, text in problems(valid_params)] == [("runs.ten.distill", True)]
    del valid_params["runs"]["ten"]
    assert parse(valid_params).distillations["one"].initial_run == "first"


def test_start_epochs_beyond_the_experts(valid_params: Raw) -> None:
    put(valid_params, "runs/one/distill/max_start_epoch", 5)  # 5 - 1 + 2 = 6 of 5 epochs
    [(path, text)] = problems(valid_params)
    assert path == "runs.one.distill.max_start_epoch"
    assert {"6", "5"} <= set(re.findall(r"\d+", text))
    put(valid_params, "runs/one/distill/max_start_epoch", 4)
    parse(valid_params)
    put(valid_params, "runs/one/distill/max_start_epoch", 99)
    put(valid_params, "runs/one/distill/iterations", 0)  # nothing is matched
    parse(valid_params)


def test_all_images_cannot_be_distilled(valid_params: Raw) -> None:
    put(valid_params, "runs/one/ipc", "all")
    [(path, text)] = problems(valid_params)
    assert path == "runs.one.ipc"
    assert "iterations" in text
    put(valid_params, "runs/one/distill/iterations", 0)
    assert parse(valid_params).runs["one"].ipc == "all"


@pytest.mark.parametrize("initialisation", ["random", "noise"])
def test_a_baseline_needs_no_experts(initialisation: str, valid_params: Raw) -> None:
    put(valid_params, "runs/one/experts", None)
    put(valid_params, "runs/one/distill", {"method": "ast", "iterations": 0, "initialisation": initialisation})
    put(valid_params, "runs/ten/experts", None)
    put(valid_params, "runs/ten/distill", {"method": "ast", "iterations": 0, "initialisation": initialisation})
    put(valid_params, "experts", {})
    assert parse(valid_params).runs["one"].experts is None


@pytest.mark.parametrize("changes", [{}, {"iterations": 0, "initialisation": "representative"}])
def test_what_asks_experts_must_name_them(changes: Raw, valid_params: Raw) -> None:
    put(valid_params, "runs/one/experts", None)
    put(valid_params, "runs/one/distill", {"method": "ast", **changes})
    ((path, text),) = problems(valid_params)
    assert path == "runs.one.experts"
    assert "must name experts" in text


def test_way_points_must_fit_into_the_steps(valid_params: Raw) -> None:
    changes = {"intermediate_loss": "sum", "expert_epochs": 4, "syn_steps": 3, "max_start_epoch": 1}
    valid_params["runs"]["one"]["distill"].update(changes)
    [(path, text)] = problems(valid_params)
    assert path == "runs.one.distill.expert_epochs"
    assert {"4", "3"} <= set(re.findall(r"\d+", text))


def test_run_and_experts_must_have_the_same_network(valid_params: Raw) -> None:
    put(valid_params, "networks/D1", {"depth": 1, "width": 4})
    put(valid_params, "runs/one/network", "D1")
    [(path, text)] = problems(valid_params)
    assert path == "runs.one.network"
    assert all(name in text for name in ("D1", "D2", "smooth"))


def test_every_family_has_its_own_keys(valid_params: Raw) -> None:
    specs = [{"family": "MLP", "width": 4}, {"family": "LeNet"}, {"family": "AlexNet"}, {"family": "VGG11", "norm": "group"}]
    specs.append({"family": "ResNet18", "norm": "batch", "width": 8})
    valid_params["networks"] |= {f"N{i}": spec for i, spec in enumerate(specs)}
    valid_params["runs"]["one"]["cross"] = [f"N{i}" for i in range(len(specs))]
    params = parse(valid_params)
    assert [params.network(name).family for name in params.runs["one"].cross] == [spec["family"] for spec in specs]
    assert params.network("D2").family == "ConvNet"
    assert [params.network(f"N{i}").keeps_statistics for i in range(5)] == [False, False, False, False, True]
    valid_params["runs"]["one"]["network"] = "N4"  # in cross it may keep statistics, as own network it may not
    assert "runs.one.network" in paths(valid_params | {"runs": {"one": valid_params["runs"]["one"] | {"cross": []}}})


def test_a_split_must_leave_training_images(valid_params: Raw) -> None:
    valid_params["prepare"]["digits"].update(val_fraction=0.6, test_fraction=0.5)
    assert all(path.startswith("prepare.digits") for path in paths(valid_params))


NAMED = ("prepare", "networks", "experts", "distill", "evaluate", "runs")
NO_FOLDERS = ("../x", "", ".hidden", "a/b", "a b", "-x", "x\n", "ä", 10, None, "x" * 65, "con", "Aux", "COM1", "lpt9")
NO_KEYS = ("digits-0.5", "a.", "1a", "007", "2024-01-01", "_x", "null", "True", "NaN", "inf")  # of `dvc exp run -S`


def named(raw: Raw, section: str, name: Any) -> Raw:
    """With one more name, of settings that are right."""
    raw[section][name] = copy.deepcopy(next(iter(raw[section].values())))
    return raw


@pytest.mark.parametrize("name", [*NO_FOLDERS, *NO_KEYS])
@pytest.mark.parametrize("section", NAMED)
def test_names_that_dvc_mlflow_or_a_file_system_does_not_take(section: str, name: Any, valid_params: Raw) -> None:
    [(path, text)] = problems(named(valid_params, section, name))
    assert path == f"{section}.{name}"
    assert text.startswith("can't be a name: take letters, digits, '_' and '-', a letter first, 64 at most, ")


@pytest.mark.parametrize("name", ["x" * 64, "ConvNetD3W32", "a_b-", "nullable", "console", "com10", "e3", "key", "yes"])
@pytest.mark.parametrize("section", NAMED)
def test_names_that_all_take(section: str, name: str, valid_params: Raw) -> None:
    assert name in named(valid_params, section, name)[section]
    parse(valid_params)


@pytest.mark.parametrize("section", NAMED)
def test_two_names_are_not_one_folder(section: str, valid_params: Raw) -> None:
    """To the file systems of macOS and Windows."""
    name = next(iter(valid_params[section]))
    [(path, text)] = problems(named(valid_params, section, name.swapcase()))
    assert path == f"{section}.{name.swapcase()}"
    assert text.startswith(f"differs from '{name}' in capitals alone")


@pytest.mark.parametrize("top", [None, [], "text", 3, [{"seed": 0}]])
def test_the_top_level_is_a_mapping(top: Any) -> None:
    assert paths(top) == ["(top level)"]


@pytest.mark.parametrize("run", ["one", "ten"])
def test_settings_are_frozen(run: str, valid_params: Raw) -> None:
    params = parse(valid_params)
    with pytest.raises(FrozenInstanceError):
        params.seed = 1  # type: ignore[misc]
    for model in (params.runs[run], params.runs[run].distill, params.distillations[run], params.runtime):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, next(iter(type(model).model_fields)), 1)


def test_unknown_names_are_answered_with_the_known(valid_params: Raw) -> None:
    params = parse(valid_params)
    for find, section in (
        (params.run, "runs"),
        (params.dataset, "prepare"),
        (params.expert_set, "experts"),
        (params.network, "networks"),
    ):
        with pytest.raises(UnknownNameError, match=f"'nope'.*{next(iter(valid_params[section]))}.*{section}"):
            find("nope")


def test_of_many_names_the_nearest_are_told() -> None:
    known = [f"digits-ipc{ipc}-{method}" for ipc in range(1, 11) for method in ("ast", "mtt")]
    told = str(UnknownNameError("run", "digits-ipc7-atm", "runs", known))
    assert told.count("digits-ipc") == 13 and "(the nearest of 20)" in told and "digits-ipc7-mtt" in told


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_every_field_is_described(model: type[BaseModel]) -> None:
    assert model.__doc__
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name}"
