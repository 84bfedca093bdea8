"""Accuracies on the way: the first is that of the initial images, the last that of the set, and the test split is not read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch

from src.ground.errors import InterruptedWorkError
from src.settings import resolved
from src.settings.params import Params
from src.stages import distill, evaluate
from src.store import checkpoints, files, tensors, values
from src.store.checkpoints import Work
from src.store.store import Store
from src.store.values import Record, SyntheticSet
from src.studies import snapshots
from tests.called import command
from tests.small_run import STORE, made

REAL = {"objective": "real", "real": {"images": 16, "students": 1, "max_age": 1}, "labels": "learned", "lr_label": 50.0}


def raw_params() -> dict[str, Any]:
    run = {"dataset": "digits", "network": "D2", "experts": "short", "evaluate": "mtt", "ipc": 2}
    real = {"initialisation": "random", "lr_init": 0.05}
    protocol = {"students": 2, "epochs": 12, "augmentation": ["crop"]}
    return {
        "seed": 0,
        "runtime": {"device": "cpu", "threads": 1, "compile": "off"},
        "prepare": {"digits": {"source": "digits"}},
        "networks": {"D2": {"depth": 2, "width": 8}},
        "experts": {"short": {"dataset": "digits", "network": "D2", "count": 1, "epochs": 2, "lr": 0.05}},
        "distill": {
            "mtt": {**real, "iterations": 4, "syn_steps": 2, "lr_lr": 0.01, "snapshot_every": 2},
            "soft": {**real, **REAL, "iterations": 4, "syn_steps": 2, "snapshot_every": 2},
            "expert": {**real, "labels": "expert", "iterations": 4, "syn_steps": 2, "snapshot_every": 2},
            "real": {**real, "iterations": 0},
        },
        "evaluate": {"mtt": protocol, "best": {**protocol, "score": "best_test", "test_every": 5}},
        "runs": {
            "one": {**run, "distill": {"method": "mtt"}},
            "best": {**run, "distill": {"method": "mtt"}, "evaluate": "best"},
            "start": {**run, "distill": {"method": "real"}},
            "soft": {**run, "experts": None, "distill": {"method": "soft"}},
            "expert": {**run, "distill": {"method": "expert"}},
            "soft-2": {**run, "experts": None, "distill": {"method": "soft", "iterations": 2}},
        },
    }


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    with made(tmp_path_factory.mktemp("work"), raw_params()) as found:
        yield found


def curve(name: str, figure: str, split: str = "val") -> dict[int, float]:
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    (run,) = [run for run in client.search_runs(["1"]) if run.info.run_name == name]
    history = client.get_metric_history(run.info.run_id, f"snapshots/{split}_accuracy_{figure}")
    return {point.step: point.value for point in history}


def metric(name: str, figure: str) -> float:
    return float(files.read_json(STORE.metrics_file(name), "")[f"val_accuracy_{figure}"])


@pytest.mark.parametrize("run", ["one", "best"])
def test_ends_are_the_initial_images_and_the_set(
    run: str, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, load_split, load_inputs = [], Store.load_split, Store.load_inputs
    monkeypatch.setattr(Store, "load_split", lambda own, name, split: read.append(split) or load_split(own, name, split))
    monkeypatch.setattr(Store, "load_inputs", lambda own, name, split: read.append(split) or load_inputs(own, name, split))
    before = {path: files.digest(path) for path in Path("data").rglob("*") if path.is_file()}
    assert command(f"evaluate --run {run} --snapshots", monkeypatch) == 0
    assert set(read) == {"val"}
    shown = capsys.readouterr().err
    for figure in ("mean", "std"):
        found = curve(run, figure)
        assert list(found) == [0, 2, 4]
        assert found[0] == pytest.approx(metric("start", figure))
        assert found[4] == pytest.approx(metric("one", figure))  # both runs differ in their protocol's epoch alone
    means, stds = curve(run, "mean"), curve(run, "std")
    assert all(f"{100 * means[step]:.1f} ± {100 * stds[step]:.1f}" in shown for step in means)
    assert before.items() <= {path: files.digest(path) for path in Path("data").rglob("*") if path.is_file()}.items()
    assert not list((checkpoints.folder() / "evaluate").glob("snapshot-*/*"))


def test_learned_labels_are_those_of_the_moment(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of two iterations ends with what one of four had after two: the same draws, images and labels."""
    kept = STORE.load_snapshots("soft")
    assert kept.labels is not None
    assert torch.equal(kept.labels[1], STORE.load_synthetic("soft-2").labels)
    assert torch.equal(kept.labels[2], STORE.load_synthetic("soft").labels)
    assert not torch.equal(kept.labels[1], kept.labels[2])
    assert STORE.load_snapshots("one").labels is None
    for run in ("soft", "soft-2"):
        assert command(f"evaluate --run {run} --snapshots", monkeypatch) == 0
    assert curve("soft", "mean")[2] == curve("soft-2", "mean")[2]


def test_snapshots_without_the_labels_of_their_moment_are_not_scored(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = STORE.snapshots_file("soft")
    whole, found = path.read_bytes(), tensors.record_of(path, "")
    record = Record(values.SNAPSHOTS, found["settings"], found["inputs"])
    STORE.save_snapshots("soft", replace(STORE.load_snapshots("soft"), labels=None), record)
    try:
        assert command("evaluate --run soft --snapshots", monkeypatch) > 0
    finally:
        path.write_bytes(whole)
    assert (
        "is of earlier code and lacks the labels on the way: make it with `python -m src.cli distill" in capsys.readouterr().err
    )


def test_the_best_on_the_test_split_is_told_as_such(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("evaluate --run one --snapshots --test", monkeypatch) == 0
    found, shown = curve("one", "mean", "test"), " ".join(capsys.readouterr().err.split())
    assert found[4] == pytest.approx(files.read_json(STORE.metrics_file("one"), "")["test_accuracy_mean"])
    best = max(found, key=lambda iteration: found[iteration])
    assert f"best of 3 on the test split {100 * found[best]:.1f} ± " in shown
    assert f"iteration {best}: chosen on that split, for comparison only" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--run start", "start: is not distilled and has no snapshots: name a run with iterations"),
        ("--run nothing", "no run is named 'nothing'"),
        ("", "--snapshots needs --run and, beside it, --test alone"),
        ("--run one --networks D2", "--snapshots needs --run and, beside it, --test alone"),
    ],
)
def test_what_cannot_be_scored_is_a_sentence(
    words: str, sentence: str, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(f"evaluate --snapshots {words}", monkeypatch) > 0
    assert sentence in capsys.readouterr().err


def test_labels_of_experts_are_hard_before_the_first_iteration(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = STORE.load_snapshots("expert").labels
    assert labels is not None and labels.shape == (3, 20, 10)
    assert torch.equal(labels[0].argmax(1), STORE.load_synthetic("start").labels)
    assert labels[0].amax(1).eq(1).all()
    assert torch.equal(labels[-1], STORE.load_synthetic("expert").labels)
    assert labels[1:].amax(2).lt(1).all()
    assert command("evaluate --run expert --snapshots", monkeypatch) == 0
    assert curve("expert", "mean")[0] == pytest.approx(metric("start", "mean"))


def test_stopped_without_the_test_split_it_goes_on_with_it(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """Students that are finished then have looked at the validation split alone."""
    predict_all, done = evaluate.predict_all, []

    def stopped_after_one(*given: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(predict_all(*given))
        return done[0]

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(evaluate, "predict_all", stopped_after_one)
        snapshots.run(STORE, resolved.run(params, "one"), test=False)
    assert list((checkpoints.folder() / "evaluate").glob("snapshot-*/*"))
    other = Work("evaluate", "snapshot-0-val-one@D2", {"record": {}, "code": ""}, 0).checkpoint()
    other.save({}, {"epochs": 1})
    assert command("evaluate --run one --snapshots --test", monkeypatch) == 0
    assert curve("one", "mean", "test").keys() == {0, 2, 4}
    assert list((checkpoints.folder() / "evaluate").glob("snapshot-*/*")) == [other.path], "which go on with theirs"
    other.remove()


def test_a_look_that_is_cut_off_is_taken_again(params: Params) -> None:
    """As a study takes at its rungs, from which a trial may end early."""
    seen: list[int] = []

    def watch(iteration: int, synthetic: SyntheticSet) -> None:
        seen.append(iteration)
        if len(seen) == 1:
            raise InterruptedWorkError

    watched = replace(resolved.run(params, "one"), name="watched")
    with pytest.raises(InterruptedWorkError):
        distill.run(STORE, watched, watch)
    distill.run(STORE, watched, watch)
    assert seen == [2, 2, 4]
    assert torch.equal(STORE.load_synthetic("watched").pixels, STORE.load_synthetic("one").pixels)
