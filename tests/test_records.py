"""What was made from other images, sets or settings than those of now is refused by everything that reads it."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from src.ground.errors import ArtifactError, UserError
from src.settings import resolved
from src.settings.params import Params, parse
from src.stages import distill, evaluate, experts, export, gallery, prepare, records, report
from src.store import busy, checkpoints, files, tensors
from src.studies import gradient_error, variants
from src.studies.variants import Changes, Workspace
from tests.called import command
from tests.small_run import STORE, made


def raw(**data_set: Any) -> dict[str, Any]:
    run = {"dataset": "digits", "network": "D2", "evaluate": "mtt", "ipc": 1}
    method = {"initialisation": "random", "iterations": 2, "syn_steps": 2, "max_start_epoch": 2, "lr_init": 0.05}
    later = {"method": "mtt", "initialisation": "run", "initial_run": "one", "lr_init": None}
    return {
        "seed": 0,
        "runtime": {"device": "cpu", "threads": 1, "workers": 1},
        "prepare": {"digits": {"source": "digits", **data_set}},
        "networks": {"D2": {"depth": 2, "width": 8}},
        "experts": {"short": {"dataset": "digits", "network": "D2", "count": 1, "epochs": 4, "lr": 0.05}},
        "distill": {"mtt": method},
        "evaluate": {"mtt": {"students": 2, "epochs": 3}},
        "runs": {
            "one": {**run, "experts": "short", "distill": {"method": "mtt"}},
            "later": {**run, "experts": "short", "distill": later},
        },
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("whole")
    with made(folder, raw()):
        yield folder


@pytest.fixture
def params(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """In a folder of its own, where all is made."""
    shutil.copytree(whole / "data", tmp_path / "data")
    shutil.copy(whole / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return parse(raw())


def resplit() -> Params:
    """The data set is prepared otherwise, the rest is as it was."""
    params = parse(raw(val_fraction=0.3))
    prepare.run(STORE, resolved.data_set(params, "digits"))
    return params


READERS: dict[str, Callable[[Params], object]] = {
    "evaluate": lambda params: evaluate.run(STORE, resolved.run(params, "one")),
    "export": lambda params: export.gathered(STORE, resolved.run(params, "one")),
    "gallery": lambda params: gallery.moments(STORE, resolved.run(params, "one")),
    "report": lambda params: report.check(STORE, resolved.run(params, "one")),
    "gradient-error": lambda params: gradient_error.run(STORE, resolved.run(params, "one"), 1),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_set_of_other_real_images_is_refused(reader: str, params: Params) -> None:
    READERS[reader](params)
    with pytest.raises(ArtifactError, match=r"train\.safetensors was .*, is .*: make it with `python -m src\.cli "):
        READERS[reader](resplit())


def test_provenance_is_as_the_page_on_reproducibility_says(params: Params) -> None:
    def carried(path: Path) -> set[str]:
        return set(tensors.record_of(path, "")["provenance"])

    data_set = sorted(STORE.dataset_folder("digits").iterdir())
    assert len(data_set) == 5 and all(carried(path) == {"packages"} for path in data_set)
    made_here = (STORE.trajectory_file("short", 0), STORE.synthetic_file("one"), STORE.snapshots_file("one"))
    assert all(carried(path) == {"packages", "runtime"} for path in made_here)
    assert carried(STORE.scores_file("one")) == set()


ALONE: dict[tuple[str, str], Callable[[Params], object]] = {
    ("prepare", "digits"): lambda params: prepare.run(STORE, resolved.data_set(params, "digits")),
    ("experts", "short"): lambda params: experts.run(STORE, resolved.buffer(params, "short")),
    ("distill", "one"): lambda params: distill.run(STORE, resolved.run(params, "one")),
    ("evaluate", "one"): lambda params: evaluate.run(STORE, resolved.run(params, "one")),
    ("report", "page"): lambda params: report.run(STORE, resolved.pipeline(params)),
}


@pytest.mark.parametrize("artifact", ALONE)
def test_a_stage_is_refused_where_another_process_is_at_its_artifact(artifact: tuple[str, str], params: Params) -> None:
    with busy.alone(*artifact), pytest.raises(UserError, match=f"{' '.join(artifact)} is being made by another process"):
        ALONE[artifact](params)


def test_a_run_waits_for_the_set_that_it_begins_with_to_be_of_these_images(params: Params) -> None:
    params, before = resplit(), STORE.synthetic_file("one").read_bytes()
    with pytest.raises(ArtifactError, match="experts --experts short"):
        distill.run(STORE, resolved.run(params, "later"))
    assert STORE.synthetic_file("one").read_bytes() == before
    experts.run(STORE, resolved.buffer(params, "short"))
    distill.run(STORE, resolved.run(params, "later"))
    assert STORE.synthetic_file("one").read_bytes() != before, "it is made first"
    for name in ("one", "later"):
        records.check_synthetic(STORE, resolved.run(params, name))


def test_distill_makes_experts_first_of_the_run_that_it_begins_with(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DVC knows of none of them, where the run itself has none. They have the bytes that they have one by one."""
    places = STORE.trajectory_file("short", 0), STORE.synthetic_file("one"), STORE.synthetic_file("later")
    before = [place.read_bytes() for place in places]
    for name in ("one", "later"):
        checkpoints.forget("distill", name)
    places[1].unlink()
    assert command("distill --run later", monkeypatch) == 0
    assert "short is made first" not in capsys.readouterr().err, "they are there"
    shutil.rmtree(places[0].parent.parent)
    places[1].unlink()
    assert command("distill --run one", monkeypatch) == 1, "a run's own experts are the pipeline's"
    assert command("distill --run later", monkeypatch) == 0
    said = capsys.readouterr().err
    assert said.index("short is made first") < said.index("one is made first")
    assert [place.read_bytes() for place in places] == before
    assert list(distill.missing_experts(STORE, resolved.run(params, "later"))) == []


def test_a_set_that_begins_with_one_that_is_another_now_is_refused(params: Params) -> None:
    later = resolved.run(params, "later")
    records.check_synthetic(STORE, later)
    one = STORE.synthetic_file("one")
    shutil.copy(STORE.synthetic_file("later"), one)
    with pytest.raises(ArtifactError, match=r"distill/one/synthetic\.safetensors was .*: make it with .* distill --run later"):
        evaluate.run(STORE, later)
    one.unlink()  # whoever pulled the later run alone has not got it
    evaluate.run(STORE, later)


def test_a_workspace_takes_no_set_of_other_images(params: Params) -> None:
    params = resplit()
    workspace = Workspace(Path("data/tune/one").absolute(), Path.cwd())
    workspace.lend("digits")
    later = resolved.run(params, "later")
    variant = variants.build(later, params.tune, Changes(), variants.protocol_of(later, params.tune))
    with workspace.entered(), pytest.raises(ArtifactError, match="distill --run one"):
        variants.ready_experts(variant, workspace.source)


def test_scores_are_of_their_set_and_protocol(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    again = raw()
    again["evaluate"]["mtt"]["epochs"] = 4
    other = resolved.run(parse(again), "one")
    for reading in (report.check, records.check_scores):
        with pytest.raises(ArtifactError, match=r"evaluate\.epochs was 3, is 4\): make it with .* evaluate --run one"):
            reading(STORE, other)
    assert export.gathered(STORE, resolved.run(params, "one")).accuracy is not None
    assert export.gathered(STORE, other).accuracy is None
    assert "one is exported without its scores" in capsys.readouterr().err
    again = raw()
    again["distill"]["mtt"]["iterations"] = 3
    longer = resolved.run(parse(again), "one")
    distill.run(STORE, longer)
    with pytest.raises(ArtifactError, match="synthetic set was"):
        report.check(STORE, longer)
    evaluate.run(STORE, longer)
    report.check(STORE, longer)
    STORE.metrics_file("one").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"metrics/one\.json was"):
        report.check(STORE, longer)


def test_verify_says_what_is_missing(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = STORE.synthetic_file("later")
    assert command(f"verify {path}", monkeypatch) == 0
    shutil.rmtree(STORE.trajectories_folder("short"))
    assert command(f"verify {path}", monkeypatch) == 1
    assert "short/trajectories is missing: make it with `python -m src.cli experts" in " ".join(capsys.readouterr().err.split())


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    writing, dead = (tmp_path / f".a.json.{name}.tmp" for name in ("writing", "dead"))
    dead.touch()
    with writing.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        files.write_text(tmp_path / "a.json", "{}")
        assert (writing.exists(), dead.exists()) == (True, False)
    files.write_text(tmp_path / "a.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
