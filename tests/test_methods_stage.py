"""Every method as the stages run it: what it keeps, what its history tells, and that it goes on to the same bytes."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from src.ground.errors import DivergenceError, ParamsError, UserError
from src.loops import outer
from src.maths import distillation
from src.pages import markdown, page
from src.settings import params as reading
from src.settings import resolved
from src.settings.params import Params
from src.stages import distill, export, report, repro, resolve, results
from src.stages.records import prepared
from src.store import code, files, locked
from src.studies import ablate, gradient_error, space, variants
from src.studies import compare as comparison
from src.studies.variants import Changes, Workspace
from tests.called import command
from tests.imports import ROOT
from tests.small_run import STORE, made

RUNS: dict[str, dict[str, Any]] = {
    "mtt": {},
    "att": {"target": "nearest", "ema": 0.9},
    "tesla": {"labels": "expert", "gradient": "tesla"},
    "datm": {
        "initialisation": "classified", "labels": "learned", "lr_label": 2.0, "label_momentum": 0.9, "ema": 0.9,
        "start_growth": {"max_start_epoch": 1, "iterations": 4},
    },
    "real": {
        "initialisation": "noise", "objective": "real", "real": {"students": 2, "images": 32, "max_age": 12, "max_skip": 3},
        "inner_optimiser": "adam", "outer_optimiser": "adam", "lr_img": 0.01, "lr_init": 0.001, "labels": "learned",
        "lr_label": 0.03,
    },
    "refined": {
        "initialisation": "run", "initial_run": "datm", "lr_init": None, "objective": "both", "real": {"images": 32},
    },
}  # fmt: skip


def raw() -> dict[str, Any]:
    """In the order in which the run that begins with another one stands before that."""
    method = {"initialisation": "random", "iterations": 6, "syn_steps": 5, "max_start_epoch": 3, "lr_img": 5.0, "lr_init": 0.05}
    run = {"dataset": "digits", "network": "D2", "experts": "plain", "evaluate": "mtt", "ipc": 2}
    return {
        "seed": 0,
        "runtime": {"device": "cpu", "threads": 1, "workers": 1},
        "prepare": {"digits": {"source": "digits"}},
        "networks": {"D2": {"depth": 2, "width": 8}},
        "experts": {"plain": {"dataset": "digits", "network": "D2", "count": 2, "epochs": 12, "lr": 0.05, "momentum": 0.9}},
        "distill": {"base": {**method, "augmentation": ["crop"]}},
        "evaluate": {"mtt": {"students": 2, "epochs": 2}},
        "report": {"title": "Test"},
        "runs": {
            name: {**run, "experts": None if name == "real" else "plain", "distill": {"method": "base", **RUNS[name]}}
            for name in reversed(RUNS)
        },
    }


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    with made(tmp_path_factory.mktemp("methods"), raw()) as found:
        yield found


def history(name: str) -> list[dict[str, str]]:
    return files.read_csv(STORE.history_file(name), "")


@pytest.mark.parametrize("name", RUNS)
def test_a_method_goes_on_to_the_same_bytes(name: str, params: Params) -> None:
    run = resolved.run(params, name)
    statistics = prepared(STORE, run.dataset, "train")
    images, labels = distill.initial_images(STORE, run, statistics, torch.device("cpu"))
    loop, _, _ = distill.loop_of(STORE, run, statistics, images, labels)
    whole = part = outer.first(loop, images)
    while whole.iteration < 6:
        whole = outer.iterate(loop, whole)
    while part.iteration < 3:
        part = outer.iterate(loop, part)
    again = outer.resumed(loop, part.stored())
    assert again is not None
    while again.iteration < 6:
        again = outer.iterate(loop, again)
    (tensors, facts), (others, told) = whole.stored(), again.stored()
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[key], others[key]) for key in tensors)
    assert list(facts["rows"]) == list(told["rows"])
    kept = STORE.load_synthetic(name)
    assert torch.equal(kept.pixels, again.snapshots[6].pixels)
    assert torch.equal(kept.labels, outer.labels(loop, again.state))
    assert torch.equal(kept.syn_lr, again.state.syn_lr)


def test_soft_labels_are_kept_where_they_are_learned(params: Params) -> None:
    for name in RUNS:
        labels = STORE.load_synthetic(name).labels
        assert labels.is_floating_point() == (name in ("tesla", "datm", "real", "refined")), name
        if labels.is_floating_point():
            torch.testing.assert_close(labels.sum(1), torch.ones(20))
    learned, classes = STORE.load_synthetic("real").labels, torch.arange(10).repeat_interleave(2)
    drift = (learned - (0.7 * F.one_hot(classes, 10) + 0.03)).abs()
    assert 0 < drift.max() < 0.1, "no experts: of each class first 0.7 and its share, and on from there"


def test_histories_tell_what_a_method_has(params: Params) -> None:
    plain = ["iteration", "expert", "start_epoch", "matching_loss", "way_point_1", "syn_lr", "grad_norm_images"]
    rest = ["grad_norm_syn_lr", "lr_img"]
    assert list(history("mtt")[0]) == [*plain, *rest]
    assert {float(row["matched_step"]) for row in history("att")} <= {1, 2, 3, 4, 5}
    assert [row["start_bound"] for row in history("datm")] == ["1", "1", "2", "2", "3", "3"]
    assert not {"expert", "start_epoch"} & history("real")[0].keys()
    both = history("refined")[0]
    assert float(both["matching_loss"]) == pytest.approx(float(both["way_point_1"]) + float(both["real_loss"]), rel=1e-6)


def test_the_report_has_each_loss_of_the_runs_that_lower_it(params: Params) -> None:
    (group,) = results.groups(STORE, resolved.pipeline(params).runs)
    found = {chart.title: [line.label for line in chart.lines] for chart in report._matching(STORE, group).charts}
    assert set(found["Matching loss"]) == set(RUNS) - {"real"}
    assert set(found["Loss on real images"]) == {"real", "refined"}
    assert set(found["Learned step size, syn_lr"]) == set(RUNS)


def test_a_run_begins_with_another_ones_set(params: Params) -> None:
    kept, begun = STORE.load_synthetic("datm"), STORE.load_snapshots("refined")
    assert torch.equal(begun.pixels[0], kept.pixels)
    assert float(history("refined")[0]["syn_lr"]) == pytest.approx(kept.syn_lr.item())


def test_an_export_brings_the_runs_that_it_begins_with(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which share its method, with values of their own; so it scores on a clone that has made nothing."""
    run, released = resolved.run(params, "refined"), tmp_path / "data" / "released" / "refined"
    export.run(STORE, run, released)
    again = resolved.run(reading.parse(files.read_json(released / "set.json", "")["settings"]), "refined")
    for one, other in zip((run, *run.initials), (again, *again.initials), strict=True):
        assert (one.name, one.distillation, one.evaluation) == (other.name, other.distillation, other.evaluation)
        assert one.buffer is not None and other.buffer is not None and one.buffer.settings == other.buffer.settings
    metrics = files.read_json(STORE.metrics_file("refined"), "")
    shown = page.score(page.Accuracy(metrics["test_accuracy_mean"], metrics["test_accuracy_std"]))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert command("evaluate --released refined", monkeypatch) == 0
    assert capsys.readouterr().err.count(shown) == 2, "what was found, and what it was released with"


def test_a_run_comes_after_the_one_that_it_begins_with(params: Params) -> None:
    needs = repro._needs(resolved.pipeline(params))
    assert needs["distill@refined"] == {"experts@plain", "distill@datm"}
    assert list(needs).index("distill@datm") < list(needs).index("distill@refined")


def test_what_a_run_begins_with_is_made_again_where_other_code_made_it(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    initial, place = resolved.run(params, "datm"), locked.place(STORE.data, "distill", "datm")
    entry = {"cmd": "", "deps": [{"path": place.as_posix(), "md5": "0" * 32}]}
    with monkeypatch.context() as patch:
        patch.setattr(locked, "stages", lambda: {"distill@datm": entry})
        assert distill._is_made(STORE, initial), "what nobody has resolved rests on nothing else"
        files.write_json(place, {"code": "of now"})
        assert not distill._is_made(STORE, initial)
        entry["deps"] = [{"path": place.as_posix(), "md5": files.digest(place)}]
        assert distill._is_made(STORE, initial)
    assert distill._is_made(STORE, initial), "DVC never made it"
    place.unlink()


def test_a_method_rests_on_its_own_targets(params: Params) -> None:
    places = dict(resolve.files_of(resolved.pipeline(params)))
    digests = {name: places[f"distill/{name}.json"]["code"] for name in RUNS}
    assert digests["mtt"] == digests["tesla"] == digests["datm"]
    assert len({digests[name] for name in ("mtt", "att", "real", "refined")}) == 4
    entry = code.ENTRIES["distill"]
    assert not any("targets/" in module and "base" not in module for module in code.closure(entry))
    assert places["distill/refined.json"]["initial"] == places["distill/datm.json"]


def test_teslas_gradient_is_set_beside_the_exact_one(params: Params) -> None:
    gradient_error.run(STORE, resolved.run(params, "mtt"), every=2)
    rows = files.read_csv(Path("data/gradient-error/mtt.csv"), "")
    assert [row["iteration"] for row in rows] == ["0", "2", "4"]
    losses = [row["matching_loss"] for row in history("mtt")]
    assert [row["loss"] for row in rows] == losses[::2], "the distillation goes by the exact gradient"
    assert all(0 < float(row["cosine"]) < 1 and float(row["norm"]) > 0 for row in rows)
    assert Path("data/gradient-error/mtt.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="students that learn by SGD"):
        gradient_error.run(STORE, resolved.run(params, "real"), every=2)


def test_iterations_that_are_repeated_after_a_divergence_stand_once(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    run, iterate, failed = resolved.run(params, "mtt"), distillation.iterate, []

    def once(*given: Any) -> Any:
        if given[7] == 3 and not failed:  # the iteration
            failed.append(3)
            raise DivergenceError("too far")
        return iterate(*given)

    monkeypatch.setattr(distillation, "iterate", once)
    restoring = run.distillation.model_copy(update={"on_divergence": "restore"})
    gradient_error.run(STORE, replace(run, distillation=restoring), every=2)
    assert failed
    assert [row["iteration"] for row in files.read_csv(Path("data/gradient-error/mtt.csv"), "")] == ["0", "2", "4"]


def test_the_report_shows_what_a_method_has(params: Params) -> None:
    pipeline = resolved.pipeline(params)
    content = report.page_of(STORE, pipeline.runs, list(pipeline.networks), "Test")
    text, table = page.html(content), markdown.text("Test", content.results, content.matrix, content.standings)
    for words in ("Step of the student that was matched", "Start epochs lie below", "for the likeliest class", "Running mean"):
        assert words in text
    assert "7 nearest step, 8 running mean, 9 soft labels, 10 growing window of starts, 12 loss on real images" in table
    assert "13 TESLA's gradient" in table and "shallow layers" not in table
    parts = {result.run: result.parts for result in content.results}
    assert parts == {"mtt": (), "att": (7, 8), "tesla": (9, 13), "datm": (8, 9, 10), "real": (9, 12), "refined": (12,)}


def test_a_study_searches_what_a_method_has(params: Params) -> None:
    def searched(name: str) -> Mapping[str, Any]:
        return space.build(resolved.run(params, name), params.tune, "student")

    assert "distill.lr_label" in searched("datm") and "distill.ema" in searched("datm")
    assert "distill.initialisation" not in searched("datm") and "distill.initialisation" in searched("mtt")
    assert "distill.intermediate_loss" not in searched("att")
    real = searched("real")
    assert not {f"distill.{name}" for name in (*space.MATCHING, "inner_momentum", "initialisation")} & real.keys()
    assert real["distill.lr_img"].high == real["distill.lr_label"].high == 1, "of Adam"
    drawn = {"distill.max_start_epoch": 1, "distill.expert_epochs": 4}
    late = resolved.run(params, "mtt")
    late = replace(late, distillation=late.distillation.model_copy(update={"min_start_epoch": 2}))
    assert space.tidy(late, space.build(late, params.tune, "student"), drawn)["distill.max_start_epoch"] == 3
    with pytest.raises(UserError, match="real has no experts"):
        space.build(resolved.run(params, "real"), params.tune, "both")


def test_ablate_takes_the_parts_of_a_method(params: Params) -> None:
    base = resolved.run(params, "datm")
    arms = {arm.label: arm for arm in ablate.arms(base)}
    own = ("running mean", "soft labels", "growing window of starts")
    assert {f"without {name}" for name in own} | {f"MTT and {name}" for name in own} <= set(arms)
    assert "MTT and nearest step" not in arms, "parts of other methods have no strength that the run gives them"
    protocol = variants.protocol_of(base, params.tune)
    for arm in arms.values():
        built = variants.build(base, params.tune, ablate.changes(base, arm.parts, 0), protocol).run
        assert [part for part in results._parts(built) if part > page.AST_PARTS] == [p for p in arm.parts if p > page.AST_PARTS]
    sharp = base.experts.settings.model_copy(update={"sharpness": 0.01})
    sharp_run = replace(base, buffer=replace(base.experts, settings=sharp))
    assert {arm.label: arm.parts for arm in ablate.arms(sharp_run)}["MTT and sharpness-aware steps"] == (14,)
    with pytest.raises(UserError, match="is not MTT with parts"):
        ablate.run(STORE, resolved.run(params, "real"), params.tune, 2, False, 1)


def test_variants_of_runs_without_experts_and_of_runs_that_begin_with_another(params: Params, tmp_path: Path) -> None:
    alone, begun = (resolved.run(params, name) for name in ("real", "refined"))
    one = variants.build(alone, params.tune, Changes({"lr_img": 0.02}), variants.protocol_of(alone, params.tune))
    assert one.run.buffer is None and one.run.distillation.lr_img == 0.02
    other = variants.build(begun, params.tune, Changes({"lr_img": 2.0}, seed=7), variants.protocol_of(begun, params.tune))
    protocol = variants.protocol_of(begun, params.tune)
    named = variants.build(replace(begun, method="no-initial"), params.tune, Changes(), protocol)
    assert named.run.distillation.iterations == begun.distillation.iterations, "whatever the method is called"
    exact = replace(alone, runtime=alone.runtime.model_copy(update={"precision": "bfloat16"}))
    assert variants.build(exact, params.tune, Changes(), variants.protocol_of(alone, params.tune)).name != (
        variants.build(alone, params.tune, Changes(), variants.protocol_of(alone, params.tune)).name
    ), "numbers of another precision are other numbers"
    assert other.run.initial == begun.initial and other.run.seed == 7
    source = Path.cwd()
    workspace = Workspace(tmp_path / "workspace", source)
    workspace.lend("digits")
    same = variants.build(begun, params.tune, Changes({"lr_img": 2.0}), variants.protocol_of(begun, params.tune))
    with workspace.entered():
        variants.ready_experts(one, source)
        assert not (tmp_path / "workspace/data/experts").exists()
        variants.ready_experts(same, source)
        assert STORE.load_synthetic("datm").sha256()
        assert STORE.trajectories_folder(same.experts).exists()


@pytest.mark.parametrize(
    ("run", "changes", "place", "sentence"),
    [
        ("refined", {"initial_run": "refined"}, "initial_run", "can't begin with its own synthetic set"),
        ("refined", {"initial_run": "nobody"}, "initial_run", "'nobody' is not in the section runs"),
        ("datm", {"initialisation": "run", "initial_run": "refined"}, "initial_run", "these runs begin with one another"),
        ("refined", {"ipc": 3}, "initial_run", "has ipc 2, this one has 3"),
        ("att", {"experts": None}, "", "must name experts"),
    ],
)
def test_runs_that_can_not_begin_are_refused(run: str, changes: dict[str, Any], place: str, sentence: str) -> None:
    document = raw()
    own = document["runs"][run]
    for name, value in changes.items():
        (own if name in own else own["distill"])[name] = value
    with pytest.raises(ParamsError) as caught:
        reading.parse(document)
    assert sentence in str(caught.value)
    assert place in str(caught.value)


def test_what_a_method_contradicts_is_said_once() -> None:
    document = raw()
    document["distill"]["base"] |= {"ema": 0.9, "iterations": 0}
    with pytest.raises(ParamsError) as caught:
        reading.parse(document)
    assert str(caught.value).count("ema averages over iterations") == 1
    assert "distill.base: ema averages" in str(caught.value)


def test_compare_tells_what_methods_differ_in(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    comparison.run(STORE, resolved.pipeline(params), ["mtt", "datm"], None)
    said = capsys.readouterr().out
    assert all(words in said for words in ("distill.labels", "distill.start_growth.iterations", "distill.ema"))


def test_runs_of_different_data_do_not_begin_with_each_other() -> None:
    document = raw()
    document["prepare"]["others"] = {"source": "digits", "val_fraction": 0.3}
    document["experts"]["others"] = {**document["experts"]["plain"], "dataset": "others"}
    document["runs"]["refined"] |= {"dataset": "others", "experts": "others"}
    with pytest.raises(ParamsError, match="has dataset digits, this one has others"):
        reading.parse(document)


def test_targets_are_named_as_their_modules() -> None:
    combined = itertools.product(("matching", "real", "both"), ("end", "nearest"))
    for objective, target in combined:
        if objective != "real" or target == "end":
            real = {} if objective == "matching" else {"real": {}}
            settings = {"initialisation": "noise", "iterations": 1, "objective": objective, "target": target}
            for kind in reading.Distillation(**settings, **real).targets:  # type: ignore[arg-type]
                assert (code.ROOT / code.TARGETS / f"{kind}.py").exists()
