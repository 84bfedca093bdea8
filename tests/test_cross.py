"""Cross-architecture evaluation through a small real run: experts, a synthetic set, students of three networks, the report."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from torch import Tensor

from src import cli
from src.ground.errors import ArtifactError, UnknownNameError
from src.ground.seeding import generator
from src.maths import networks, protocol, scores
from src.maths.networks import FlatNetwork, ImageShape
from src.pages import page
from src.settings import resolved
from src.settings.params import Params, load, parse
from src.stages import clean, distill, evaluate, experts, plan_steps, report, results
from src.store import checkpoints, files
from src.store.checkpoints import Work
from src.studies import compare, samples
from tests.small_run import STORE, made

CPU = torch.device("cpu")
SHAPE = ImageShape(1, 8, 10)
CROSS = ("mlp", "bn")


def raw_params() -> dict[str, Any]:
    run = {"dataset": "digits", "network": "D2", "experts": "short", "evaluate": "mtt", "ipc": 2}
    return {
        "seed": 0,
        "runtime": {"device": "cpu", "threads": 1, "compile": "off"},
        "prepare": {"digits": {"source": "digits"}},
        "networks": {
            "bn": {"family": "VGG11", "width": 4, "norm": "batch"},
            "D2": {"depth": 2, "width": 8},
            "mlp": {"family": "MLP", "width": 16},
            "lenet": {"family": "LeNet"},
        },
        "experts": {"short": {"dataset": "digits", "network": "D2", "count": 2, "epochs": 2, "lr": 0.05}},
        "distill": {"mtt": {"initialisation": "random", "iterations": 2, "syn_steps": 2, "lr_init": 0.05}},
        "evaluate": {
            "mtt": {"students": 2, "epochs": 12, "augmentation": ["crop", "scale"]},
            "best": {"students": 2, "epochs": 12, "augmentation": ["crop"], "score": "best_test", "test_every": 5},
        },
        "runs": {
            "one": {**run, "distill": {"method": "mtt"}, "cross": list(CROSS)},
            "best": {**run, "distill": {"method": "mtt"}, "evaluate": "best"},
        },
    }


def change(place: str, value: Any) -> Params:
    """The folder's params with one value changed, read anew; the file keeps its old text."""
    file = Path("params.yaml")
    before = file.read_text(encoding="utf-8")
    raw = json.loads(before)
    *parents, last = place.split("/")
    functools.reduce(lambda node, key: node[key], parents, raw)[last] = value
    file.write_text(json.dumps(raw), encoding="utf-8")
    try:
        return load()
    finally:
        file.write_text(before, encoding="utf-8")


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    """The folder after all stages but the report."""
    with made(tmp_path_factory.mktemp("work"), raw_params()) as found:
        yield found


def scored(name: str = "one") -> dict[str, dict[str, float]]:
    rows = files.read_csv(STORE.networks_file(name), "")
    return {row.pop("network"): {key: float(value) for key, value in row.items()} for row in rows}


def tracked(name: str = "one") -> list[Any]:
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    return [run for run in client.search_runs(["1"]) if run.info.run_name == name]


def students_by_hand(params: Params, network: str) -> list[Any]:
    """Trained students of the run `one`, one after the other; functions of images."""
    synthetic, settings, found = STORE.load_synthetic("one"), params.evaluate["mtt"], []
    for student in range(settings.students):
        module = networks.build(params.networks[network], SHAPE, generator(0, "evaluate", student, "initialisation"))
        draws = generator(0, "evaluate", student, "training")
        images = STORE.load_space("digits").normalise(synthetic.pixels)
        given = (images, synthetic.labels, synthetic.syn_lr.item(), settings)
        if network == "bn":
            images, labels, syn_lr, _ = given
            list(protocol.ModuleStudent(module, settings, draws).epochs(images, labels, syn_lr))
            found.append(module)
        else:
            flat, start = FlatNetwork(module), networks.flatten(module)[None]
            (theta,) = protocol.train_students(flat, start, *given, [draws])
            found.append(functools.partial(flat, theta))
    return found


def test_networks_come_in_order_with_the_metrics_columns(params: Params) -> None:
    found = scored()
    assert list(found) == ["D2", *CROSS]
    columns = [f"{split}_accuracy_{figure}" for split in ("val", "test") for figure in ("mean", "std")]
    assert all(list(row) == columns for row in found.values())
    assert found["D2"] == pytest.approx(files.read_json(STORE.metrics_file("one"), ""), rel=1e-8)
    assert list(scored("best")) == ["D2"]
    assert len({row["test_accuracy_mean"] for row in found.values()}) == 3


@pytest.mark.parametrize("network", ["D2", *CROSS])
def test_each_networks_students_have_the_same_streams(params: Params, network: str) -> None:
    for split in ("val", "test"):
        images, labels = STORE.load_inputs("digits", split)
        students = students_by_hand(params, network)
        accuracies = [scores.accuracy(scores.predictions(student, images), labels) for student in students]
        mean, std = scores.mean_and_std(accuracies)
        row = scored()[network]
        # side by side they round differently, which may turn an image in hundreds
        assert row[f"{split}_accuracy_mean"] == pytest.approx(mean, abs=0.01)
        assert row[f"{split}_accuracy_std"] == pytest.approx(std, abs=0.01)


def test_cross_leaves_the_own_results_byte_for_byte(params: Params) -> None:
    own = [file("one") for file in (STORE.metrics_file, STORE.students_file, STORE.predictions_file)]
    kept, crossed = [files.digest(path) for path in own], STORE.networks_file("one").read_bytes()
    evaluate.run(STORE, resolved.run(change("runs/one/cross", []), "one"))
    assert [files.digest(path) for path in own] == kept
    assert STORE.networks_file("one").read_bytes() == b"".join(crossed.splitlines(keepends=True)[:2])
    evaluate.run(STORE, resolved.run(params, "one"))
    assert STORE.networks_file("one").read_bytes() == crossed


def test_mlflow_holds_the_crosses_in_the_runs_row(params: Params) -> None:
    (row,) = tracked()
    for network in CROSS:
        for key, value in scored()[network].items():
            assert row.data.metrics[f"cross/{network}/{key}"] == pytest.approx(value, rel=1e-8)
    assert row.data.metrics["test_accuracy_mean"] == pytest.approx(scored()["D2"]["test_accuracy_mean"], rel=1e-8)
    assert row.data.tags["ast.scored"] == "last epoch"
    assert tracked("best")[0].data.tags["ast.scored"] == "best epoch on the test split"


def everything() -> dict[Path, str]:
    return {path: files.digest(path) for path in sorted(Path("data").rglob("*")) if path.is_file()}


def command(words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["src.cli", *words.split()])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_networks_named_on_the_command_line(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything()
    assert command("evaluate --run one --networks lenet,D2", monkeypatch) == 0
    shown = capsys.readouterr().err
    assert everything() == before
    (row,) = tracked()
    own = scored()["D2"]
    assert f"{100 * own['test_accuracy_mean']:.1f} ± {100 * own['test_accuracy_std']:.1f}" in shown
    other = [row.data.metrics[f"cross/lenet/test_accuracy_{figure}"] for figure in ("mean", "std")]
    assert f"{100 * other[0]:.1f} ± {100 * other[1]:.1f}" in shown
    assert shown.index("lenet") < shown.index("D2  ")
    assert "mlp" not in shown


def test_a_network_that_was_redefined_opens_a_new_row(params: Params) -> None:
    (first,) = tracked("best")
    evaluate.score_networks(STORE, resolved.run(params, "best"), {one: params.network(one) for one in ["mlp"]})
    (second,) = tracked("best")
    assert first.info.run_id == second.info.run_id
    evaluate.score_networks(
        STORE,
        resolved.run(change("networks/mlp/width", 8), "best"),
        {one: change("networks/mlp/width", 8).network(one) for one in ["mlp"]},
    )
    rows = tracked("best")
    assert len(rows) == 2
    assert len({row.data.metrics["cross/mlp/test_accuracy_mean"] for row in rows}) == 2


def left(name: str) -> list[Path]:
    """Checkpoints of students."""
    return sorted((checkpoints.folder() / "evaluate" / name).glob("*"))


def test_clean_knows_the_work_of_networks_that_were_named(params: Params) -> None:
    evaluate.score_networks(STORE, resolved.run(params, "best"), {"lenet": params.network("lenet")})
    kept = left("best@lenet")
    clean.run(STORE, resolved.pipeline(params), yes=True, everything=False)
    assert len(kept) == 2 and left("best@lenet") == kept
    clean.run(STORE, resolved.pipeline(change("evaluate/best/epochs", 13)), yes=True, everything=False)
    assert not left("best@lenet")


def test_an_evaluation_by_other_settings_leaves_what_others_have_begun(params: Params) -> None:
    evaluate.run(STORE, resolved.run(params, "best"))
    before = left("best@D2")
    other = resolved.run(change("evaluate/best/epochs", 13), "best")
    evaluate.score_networks(STORE, other, {"D2": other.spec})
    assert len(before) == 2 and set(before) < set(left("best@D2"))
    begun = Work(
        "evaluate", f"file-{STORE.load_synthetic('best').sha256()[:16]}@D2", {"record": {}, "code": ""}, 0
    ).checkpoint()
    begun.save({}, {"epochs": 1})
    evaluate.score_file(STORE, other, {}, STORE.synthetic_file("best"))
    assert left(begun.path.parent.name) == [begun.path]


def test_what_was_scored_is_not_trained_again(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    """DVC runs an evaluation again where any network of params.yaml changes."""
    before = {path: files.digest(path) for path in Path("data/evaluate/best").iterdir()}
    evaluate.run(STORE, resolved.run(change("networks/mlp/width", 9), "best"))
    assert "evaluate best: kept from before" in capsys.readouterr().err
    assert {path: files.digest(path) for path in Path("data/evaluate/best").iterdir()} == before


def test_unknown_networks_are_answered_with_the_known(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnknownNameError, match="no network is named 'resnet': choose one of bn, D2, mlp, lenet"):
        evaluate.score_networks(STORE, resolved.run(params, "one"), {one: params.network(one) for one in ["mlp", "resnet"]})
    assert command("evaluate --run one --networks mlp,,bn", monkeypatch) == 2
    assert "Error: no network is named ''" in capsys.readouterr().err


def test_the_best_epoch_on_the_test_split(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: the accuracies of the tested epochs, and the largest of them."""
    synthetic, settings = STORE.load_synthetic("best"), params.evaluate["best"]
    images, real_labels = STORE.load_inputs("digits", "test")
    seen = []
    fresh = [networks.build(params.networks["D2"], SHAPE, generator(0, "evaluate", s, "initialisation")) for s in range(2)]
    flat, draws = FlatNetwork(fresh[0]), [generator(0, "evaluate", s, "training") for s in range(2)]

    def note(thetas: Tensor) -> Tensor:
        seen.append([scores.accuracy(scores.predictions(functools.partial(flat, t), images), real_labels) for t in thetas])
        return torch.zeros(2, dtype=torch.float64)

    thetas = torch.stack([networks.flatten(student) for student in fresh])
    shown = STORE.load_space("digits").normalise(synthetic.pixels)
    given = (shown, synthetic.labels, synthetic.syn_lr.item(), settings, draws)
    protocol.train_students(flat, thetas, *given, score=note)
    assert len(seen) == 3  # after epochs 5, 10 and 12
    rows = files.read_csv(STORE.students_file("best"), "")
    assert [float(row["test_accuracy"]) for row in rows] == pytest.approx([max(one) for one in zip(*seen, strict=True)])
    evaluate.score_networks(STORE, resolved.run(params, "best"), {one: params.network(one) for one in ["bn"]})
    assert "each student's best epoch on the test split: it selects on that split" in capsys.readouterr().err


def test_soft_labels_are_learned_by_all_kinds_of_students(params: Params) -> None:
    synthetic, statistics = STORE.load_synthetic("one"), STORE.load_statistics("digits")
    certain = torch.nn.functional.one_hot(synthetic.labels, 10).float()
    for network in ("D2", "bn"):
        hard, soft, vague = (
            evaluate.predict_all(
                STORE,
                resolved.run(params, "one"),
                (network, params.networks[network]),
                replace(synthetic, labels=labels),
                statistics,
                CPU,
            )[0]["test"]
            for labels in (synthetic.labels, certain, torch.full_like(certain, 0.1))
        )
        assert (hard == soft).double().mean() > 0.99
        assert (hard == vague).double().mean() < 0.9


def test_other_families_are_matched_too(params: Params) -> None:
    """Experts of a ResNet18 and images learned with it."""
    changed = raw_params()
    changed["networks"]["resnet"] = {"family": "ResNet18", "width": 4}
    changed["experts"]["deep"] = changed["experts"]["short"] | {"network": "resnet", "count": 1, "batch_size": 1024}
    changed["runs"]["deep"] = changed["runs"]["best"] | {"network": "resnet", "experts": "deep"}
    deep = parse(changed)
    experts.run(STORE, resolved.buffer(deep, "deep"))
    distill.run(STORE, resolved.run(deep, "deep"))
    first, *_, last = STORE.load_snapshots("deep").pixels
    assert last.isfinite().all()
    assert not torch.equal(first, last)


def test_compare_marks_what_was_selected(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("compare one best --html versus.html", monkeypatch) == 0
    shown, best = capsys.readouterr().out, scored("best")["D2"]
    cell = f"{100 * best['test_accuracy_mean']:.1f} ± {100 * best['test_accuracy_std']:.1f}†"
    lines = {line.strip("│ ").split()[0]: line for line in shown.splitlines() if line}
    assert cell in lines["test,"] and lines["test,"].count("†") == 1 and "†" not in lines["validation,"]
    assert "test†:" in lines and "validation:" in lines
    assert lines["†"] == f"† {page.SELECTED}"
    assert cell in Path("versus.html").read_text(encoding="utf-8")
    pipeline = resolved.pipeline(params)
    honest = [compare._compared(STORE, pipeline.runs["one"], [])] * 2
    assert not list(compare.notes(honest)) and "†" not in str([*compare.rows(honest), *compare.verdicts(honest)])


def test_the_report_has_a_matrix_and_marks_what_was_selected(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    report.run(STORE, resolved.pipeline(params))
    html, markdown = (STORE.report_file(suffix).read_text(encoding="utf-8") for suffix in ("html", "md"))
    own, best = scored(), scored("best")["D2"]
    cells = [f"{100 * own[n]['test_accuracy_mean']:.1f} ± {100 * own[n]['test_accuracy_std']:.1f}" for n in ("bn", "D2", "mlp")]
    (row,) = (line for line in markdown.splitlines() if line.startswith("| one") and cells[0] in line and cells[2] in line)
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["one", *cells]
    assert "lenet" not in markdown
    assert all(cell.replace(" ", "&#8239;") in html for cell in cells)
    selected = f"{100 * best['test_accuracy_mean']:.1f} ± {100 * best['test_accuracy_std']:.1f}†"
    assert selected in markdown
    assert selected.replace(" ", "&#8239;") in html
    for text in (html, markdown, capsys.readouterr().err):
        assert "best epoch on the test split" in text.replace("&#39;", "'")
    found = {
        result.run: result.selected
        for group in results.groups(STORE, resolved.pipeline(params).runs)
        for result in group.results
    }
    assert found == {"one": False, "best": True}


def test_a_report_of_networks_that_are_not_scored_yet_is_refused(params: Params) -> None:
    with pytest.raises(
        ArtifactError, match=r"scores\.json was made differently \(networks\..*: make it with .*evaluate --run one"
    ):
        report.run(STORE, resolved.pipeline(change("runs/one/cross", ["lenet"])))


def test_the_plan_counts_every_network(params: Params) -> None:
    subject = plan_steps.Subject(resolved.run(params, "one"), STORE.load_statistics(params.runs["one"].dataset), CPU)
    assert subject.cross == (params.networks["mlp"], params.networks["bn"])
    assert plan_steps.evaluate(params.runtime, subject) > 0


def test_a_sample_says_that_other_networks_have_none(params: Params) -> None:
    found = list(samples.of_students(STORE, resolved.run(params, "one")))
    assert [one.what for one in found if one.difference] == [f"students of {network}" for network in CROSS]
