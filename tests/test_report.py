"""The report: complete, the same bytes from the same artifacts, and a page that needs nothing but itself."""

from __future__ import annotations

import base64
import copy
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import matplotlib.image
import pytest
import torch

from src.ground.errors import ArtifactError
from src.maths.pixels import Normalisation
from src.pages import charts, page, sheets
from src.settings import resolved
from src.settings.distillation import Distillation
from src.settings.params import Params, parse
from src.stages import beyond, report, results
from src.stages.records import experts_record, prepared_record, scores_record, synthetic_record
from src.store import files
from src.store.values import Snapshots, Split, Statistics, SyntheticSet
from tests.small_run import STORE

ACCURACIES = {"one": 0.911, "ten": 0.953, "found": 0.642, "whole": 0.987}


@pytest.fixture
def params(valid_params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Four runs on two sets of experts, with all their artifacts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(beyond, "track", lambda *about: None)  # which tests of the scores meet
    raw = copy.deepcopy(valid_params)
    raw["report"]["title"] = "Three < four"
    raw["experts"]["plain"] = raw["experts"]["smooth"] | {"lr": 0.05}
    raw["distill"]["real"] = {"initialisation": "random", "iterations": 0}
    baseline = raw["runs"]["one"] | {"experts": "plain", "distill": {"method": "real"}}
    raw["runs"] |= {"found": baseline, "whole": baseline | {"ipc": "all"}}
    made = parse(raw)
    _make_data(made)
    for name in made.experts:
        _make_experts(made, name)
    for name in made.runs:
        _make_run(made, name)
    return made


def _make_data(params: Params) -> None:
    labels = torch.tensor([0, 1, 0, 1, 0])
    record = prepared_record(resolved.data_set(params, "digits"), "0")
    STORE.save_split("digits", "train", Split(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), labels), record)
    STORE.save_space("digits", Normalisation(torch.zeros(1), torch.ones(1)), record)
    counts = {"train": {"a": 3, "b": 2}}
    statistics = Statistics(("a", "b"), 1, 4, 16, (0.5,), (0.25,), (0.5,), (0.25,), counts, "0", ())
    STORE.save_statistics("digits", statistics, record)


def _make_experts(params: Params, name: str) -> None:
    settings = params.experts[name]
    for index in range(settings.count):
        STORE.save_trajectory(
            name, index, torch.zeros(settings.epochs + 1, 3), experts_record(STORE, resolved.buffer(params, name))
        )
    epochs = [(expert, epoch) for expert in range(settings.count) for epoch in range(1, settings.epochs + 1)]
    rows = [{"expert": x, "epoch": e, "val_accuracy": 0.5 + e / 20, "parameter_step": (1 + x) / e} for x, e in epochs]
    files.write_csv(STORE.expert_curves_file(name), rows)


def _make_run(params: Params, name: str) -> None:
    ipc, record = params.runs[name].ipc, synthetic_record(STORE, resolved.run(params, name))
    labels = torch.tensor([0, 0, 0, 1, 1]) if ipc == "all" else torch.arange(2).repeat_interleave(int(ipc))
    images = torch.linspace(-3, 3, len(labels) * 16).view(-1, 1, 4, 4)
    STORE.save_synthetic(name, SyntheticSet(0.25 * images + 0.5, labels, torch.tensor(0.02)), record)
    moments = torch.arange(params.distillations[name].iterations + 1)
    STORE.save_snapshots(name, Snapshots(moments, images.repeat(len(moments), 1, 1, 1, 1)), record)
    history = [{"iteration": i, "matching_loss": 1 / (i + 1), "syn_lr": 0.01} for i in moments.tolist()[:-1]]
    files.write_csv(STORE.history_file(name), history, ("iteration", "matching_loss", "syn_lr"))
    mean = ACCURACIES[name]
    scores = {"val_accuracy_mean": mean - 0.1, "val_accuracy_std": 0.01, "test_accuracy_mean": mean, "test_accuracy_std": 0.012}
    files.write_json(STORE.metrics_file(name), scores)
    files.write_csv(STORE.students_file(name), [{"student": i, "test_accuracy": mean} for i in range(2)])
    files.write_csv(STORE.networks_file(name), [{"network": params.runs[name].network, **scores}])
    STORE.save_scores(name, scores_record(STORE, resolved.run(params, name)))


def made() -> tuple[str, str]:
    """The page and the table."""
    html, markdown = (STORE.report_file(suffix).read_text(encoding="utf-8") for suffix in ("html", "md"))
    return html, markdown


def test_same_artifacts_give_the_same_bytes(params: Params) -> None:
    report.run(STORE, resolved.pipeline(params))
    first = made()
    report.run(STORE, resolved.pipeline(params))
    assert made() == first


def test_page_needs_no_other_file(params: Params) -> None:
    report.run(STORE, resolved.pipeline(params))
    html, _ = made()
    places = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", html)
    assert places
    assert all(place.startswith(("data:", "#")) for place in places)
    assert "http" not in html
    assert not re.search(r"url\(|@import|<script|<iframe", html)
    assert all(re.search(r'alt="[^"]+"', image) for image in re.findall(r"<img[^>]*>", html))


def test_every_run_is_there_with_its_accuracies(params: Params) -> None:
    report.run(STORE, resolved.pipeline(params))
    html, markdown = made()
    rows = [line for line in markdown.partition("Scores beyond")[0].splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(params.runs)
    assert len({len(row) for row in rows}) == 1  # aligned
    for row, (name, mean) in zip(rows[2:], ACCURACIES.items(), strict=True):
        val, test = f"{mean * 100 - 10:.1f} ± 1.0", f"{mean * 100:.1f} ± 1.2"
        assert [cell.strip() for cell in row.split("|")[1:-1]][0::6] == [name, val]
        assert test in row
        assert name in html
        assert test.replace(" ", "&#8239;") in html
    assert "Three &lt; four" in html
    assert "not measured here" in html


def test_the_page_says_that_the_best_is_chosen_on_the_validation_split(params: Params) -> None:
    """Where there is a choice; the run that is best on the test split may then be another one."""
    one, *_ = groups = results.groups(STORE, resolved.pipeline(params).runs)
    report.run(STORE, resolved.pipeline(params))
    html, _ = made()
    assert ("the best on the validation split" in html) == any(len(group.distilled) > 1 for group in groups)
    assert one.best.val.mean == max(result.val.mean for result in one.distilled)


def test_results_are_compared_with_their_own_group(params: Params) -> None:
    one, ten, whole = results.groups(STORE, resolved.pipeline(params).runs)
    assert [(group.ipc, group.best.run) for group in (one, ten, whole)] == [(1, "one"), (10, "ten"), ("all", "whole")]
    assert one.baseline is not None
    assert (one.baseline.run, ten.baseline, whole.baseline) == ("found", None, None)
    assert one.best.gain == pytest.approx(0.911 - 0.642)
    assert ten.best.gain is None
    assert {group.whole.run for group in (one, ten, whole) if group.whole} == {"whole"}
    assert [r.colour for group in (one, ten, whole) for r in group.results] == [0, None, 0, None]


def test_all_real_images_are_those_of_the_same_network(params: Params) -> None:
    runs = dict(resolved.pipeline(params).runs)
    runs |= {name: replace(runs[name], spec=runs[name].spec.model_copy(update={"width": 2})) for name in ("ten", "whole")}
    one, ten, whole = results.groups(STORE, runs)
    assert [group.whole and group.whole.run for group in (one, ten, whole)] == [None, "whole", "whole"]


@pytest.mark.parametrize("changed", ["network", "evaluate", "noise"])
def test_gains_are_of_one_network_and_protocol_and_not_over_noise(params: Params, changed: str) -> None:
    runs = dict(resolved.pipeline(params).runs)
    found = runs["found"]
    if changed == "network":
        found = replace(found, spec=found.spec.model_copy(update={"width": 2}))
    elif changed == "evaluate":
        found = replace(found, evaluation=found.evaluation.model_copy(update={"epochs": 1}))
    runs["found"] = found
    rows = [results.result_of(STORE, own) for own in resolved.pipeline(params).runs.values() if own.ipc == 1]
    if changed == "noise":
        rows = [replace(row, initialisation="noise") if row.run == "found" else row for row in rows]
    group = results._group(rows, rows, runs)
    assert group.baseline is None and all(row.gain is None for row in group.results)


def test_runs_that_are_not_distilled_make_a_page(params: Params, valid_params: dict[str, Any]) -> None:
    for name in ("one", "ten"):
        valid_params["runs"][name]["distill"] = {"method": "ast", "iterations": 0}
    only = parse(valid_params)
    for name in only.runs:
        _make_run(only, name)
    report.run(STORE, resolved.pipeline(only))
    assert "How they changed" not in made()[0]


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        (STORE.metrics_file("ten"), "evaluate --run ten"),
        (STORE.students_file("one"), "evaluate --run one"),
        (STORE.synthetic_file("one"), "distill --run one"),
        (STORE.snapshots_file("ten"), "distill --run ten"),
        (STORE.history_file("ten"), "distill --run ten"),
        (STORE.expert_curves_file("plain"), "experts --experts plain"),
        (STORE.statistics_file("digits"), "prepare --dataset digits"),
    ],
)
def test_a_missing_artifact_is_named_with_its_remedy(params: Params, path: Path, remedy: str) -> None:
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{path} is missing: make it with `python -m src.cli {remedy}`"):
        report.run(STORE, resolved.pipeline(params))


def test_damaged_scores_are_said(params: Params) -> None:
    files.write_json(STORE.metrics_file("one"), {"test_accuracy_mean": 1.0})
    with pytest.raises(ArtifactError, match="evaluate --run one"):
        report.run(STORE, resolved.pipeline(params))


def test_artifacts_of_other_settings_are_refused(params: Params, valid_params: dict[str, Any]) -> None:
    valid_params["runs"]["one"]["distill"]["lr_img"] = 7.0
    with pytest.raises(ArtifactError, match=r"lr_img was 100\.0, is 7\.0"):
        report.run(STORE, resolved.pipeline(parse(valid_params)))
    valid_params["runs"]["one"]["distill"].pop("lr_img")
    valid_params["experts"]["smooth"]["lr"] = 0.5
    with pytest.raises(ArtifactError, match=r"lr was 0\.01, is 0\.5"):
        report.run(STORE, resolved.pipeline(parse(valid_params)))


def test_sheet_puts_each_class_in_its_column() -> None:
    pixels = torch.tensor([0.2, 0.4, 0.6, 2.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    (sheet,) = sheets.sheets(pixels, torch.tensor([1, 0, 1, 1]), ("a", "b"), rows=2)
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(sheet.uri.partition(",")[2])), format="png")
    assert picture.shape == (8, 5, 4)  # all of class b, as there are no more than two of each
    assert picture[0, :, 0].tolist() == pytest.approx([0.4, 0.4, 0, 0.2, 0.2], abs=0.003)
    assert picture[3, :, 3].tolist() == picture[6, :, 3].tolist() == [0, 0, 0, 1, 1]  # class a has one image
    assert sheets.out_of_range(pixels) == 0.25


def test_sheets_leave_out_no_image_whose_soft_label_is_another_class() -> None:
    """Unless there are more of each class than are shown."""
    for labels, rows, expected in (([0] * 3 + [2] * 3, 2, 3), ([0, 0, 2], 1, 2), ([0] * 3 + [2] * 4, 2, 2)):
        (sheet,) = sheets.sheets(torch.rand(len(labels), 1, 2, 2), torch.tensor(labels), ("a", "b", "c"), rows=rows)
        picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(sheet.uri.partition(",")[2])), format="png")
        assert sheet.rows == expected and picture[::3, ::3, 3].sum() == min(len(labels), 2 * expected)


def test_sheets_part_many_classes() -> None:
    found = sheets.sheets(torch.rand(25, 3, 2, 2), torch.arange(25), [str(k) for k in range(25)])
    assert [len(sheet.classes) for sheet in found] == [10, 10, 5]
    assert {sheet.rows for sheet in found} == {1}


def test_scales_hold_their_values() -> None:
    linear, log = charts.linear_scale([0.62, 0.987], percent=True), charts.log_scale([0.02, 3.0])
    assert [tick.label for tick in linear.ticks] == ["60", "70", "80", "90", "100"]
    assert (linear.at(0.6), linear.at(0.8), linear.at(1.0)) == (0, 50, 100)
    assert [tick.label for tick in log.ticks] == ["0.03", "0.1", "0.3", "1", "3"]
    assert log.at(0.1) - log.at(0.03) == pytest.approx(log.at(1) - log.at(0.3), abs=0.02)
    perfect = charts.linear_scale([1.0, 1.0], percent=True)
    assert (perfect.at(1.0), perfect.ticks[-1].label) == (100, "100")
    assert [tick.label for tick in charts.log_scale([1.17, 1.3]).ticks] == ["1.2", "1.4"], "close values have numbers too"
    for scale in (perfect, charts.linear_scale([0.5, 0.5]), charts.log_scale([0.0]), charts.log_scale([2.0])):
        assert scale.ticks
        assert 0 <= scale.at(0.5) <= 100


@pytest.mark.parametrize(
    ("images", "of", "shown"),
    [(10, 45_000, "0.022"), (10, 1078, "0.93"), (100, 1078, "9.3"), (500, 1078, "46"), (999, 1000, "100")],
)
def test_a_small_share_of_the_images_is_not_nothing(images: int, of: int, shown: str) -> None:
    assert page.share(images / of) == shown


def test_running_mean() -> None:
    assert charts.running_mean([0, 3, 6, 0], 3) == [1.5, 3, 3, 3]
    assert charts.running_mean([1, 2], 1) == [1, 2]


def test_long_lines_are_thinned_and_keep_their_end() -> None:
    n = 10 * charts.MOST_POINTS
    chart = charts.line_chart("t", "x", [charts.Series("s", 0, range(n), [float(i) for i in range(n)])])
    points = chart.lines[0].path[1:].split("L")
    assert len(points) <= charts.MOST_POINTS + 1
    assert points[-1].startswith("100,")


def test_every_initialisation_has_words() -> None:
    assert set(page.REAL) == set(get_args(Distillation.model_fields["initialisation"].annotation))
