"""Names that leave params.yaml: the report depends on those that are there, nothing is lost, and a name may come back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from src.ground.errors import UserError
from src.settings import resolved
from src.settings.params import Params, parse
from src.store import checkpoints, files, removed
from tests.small_run import STORE
from tests.test_pipeline import RUNS, call, repository

__all__ = ["repository"]
YAML_SAFE = YAML(typ="safe")


@pytest.fixture
def params(valid_params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Two runs with all their artifacts, each a file that says its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    found = parse(valid_params)
    for stage, name in (
        ("prepare", "digits"),
        ("experts", "smooth"),
        *((s, r) for s in ("distill", "evaluate") for r in found.runs),
    ):
        for path in removed.outputs(STORE, stage, name):
            write(path / "000.safetensors" if path.name == "trajectories" else path)
    return found


def write(*paths: str | Path) -> None:
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.as_posix())


def content(place: Path = Path("data")) -> dict[str, str]:
    """What files below a place say, by their path there."""
    return {path.relative_to(place).as_posix(): path.read_text() for path in sorted(place.rglob("*")) if path.is_file()}


def set_aside(params: Params) -> tuple[set[str], set[str]]:
    """Paths below data/ that stay and that were moved; every file is in one of the two, as it was."""
    before = content()
    removed.set_aside(STORE, resolved.pipeline(params))
    stay = content()
    moved: dict[str, str] = {}
    for place in (STORE.data / removed.FOLDER).glob("*"):
        moved |= content(place)
    stay = {path: text for path, text in stay.items() if not path.startswith("removed/")}
    assert stay | moved == before
    assert not stay.keys() & moved.keys()
    return set(stay), set(moved)


def test_nothing_is_moved_where_all_is_named(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    before = content()
    removed.set_aside(STORE, resolved.pipeline(params))
    assert content() == before
    assert capsys.readouterr().err == ""


def test_a_run_is_moved_as_a_whole(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {"one": params.runs["one"]}
    stay, moved = set_aside(replace(params, runs=runs))
    own = [
        path.relative_to("data").as_posix()
        for stage in ("distill", "evaluate")
        for path in removed.outputs(STORE, stage, "ten")
    ]
    assert moved == {*own}
    assert {"metrics/ten.json", "distill/ten/synthetic.safetensors"} <= moved
    assert {"metrics/one.json", "experts/smooth/trajectories/000.safetensors", "prepare/digits/train.safetensors"} <= stay
    (place,) = (STORE.data / removed.FOLDER).iterdir()
    said = capsys.readouterr().err
    assert said == (
        f"moved to {place}, as no stage of params.yaml makes it: data/distill/ten, data/evaluate/ten, data/metrics/ten.json\n"
    )


def test_data_sets_experts_and_files_that_no_stage_makes_are_of_the_same_kind(params: Params) -> None:
    write("data/prepare/old/train.safetensors", "data/experts/old/trajectories/000.safetensors", "data/metrics/old.json")
    write("data/evaluate/one/old.csv", "data/distill/notes.txt")
    stay, moved = set_aside(params)
    assert moved == {
        *("prepare/old/train.safetensors", "experts/old/trajectories/000.safetensors", "metrics/old.json"),
        *("evaluate/one/old.csv", "distill/notes.txt"),
    }
    assert "evaluate/one/students.csv" in stay


@pytest.mark.parametrize("place", [{"source": "./data/prepare/raw"}, {"path": "data/prepare/raw"}])
def test_what_is_no_business_of_the_report_stays(place: dict[str, str], params: Params) -> None:
    """Costs, studies, hidden files, half-written ones, and a data set's own images wherever they lie."""
    others = {
        "cost/1.json",
        "tune/study/journal.log",
        "distill/.DS_Store",
        "evaluate/one/.students.csv.x.tmp",
        "prepare/raw/a/1.png",
    }
    write(*(f"data/{path}" for path in others))
    own = params.prepare["digits"].model_copy(update=place)
    stay, moved = set_aside(replace(params, prepare={"digits": own}))
    assert moved == set()
    assert others <= stay


def test_what_another_process_makes_is_left_to_it(params: Params) -> None:
    fewer = replace(params, runs={"one": params.runs["one"]})
    with (
        checkpoints.at_work("evaluate", "ten"),
        pytest.raises(UserError, match="evaluate ten is being made by another process"),
    ):
        removed.set_aside(STORE, resolved.pipeline(fewer))
    assert not (STORE.data / removed.FOLDER).exists()
    _, moved = set_aside(fewer)
    assert {"distill/ten/history.csv", "evaluate/ten/students.csv", "metrics/ten.json"} <= moved


def test_experts_come_back_to_their_name(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("data/experts/smooth/trajectories")
    without = replace(params, experts={}, runs={})
    removed.set_aside(STORE, resolved.pipeline(without))
    write(folder / "000.safetensors")
    (folder / "000.safetensors").write_text("newer")
    removed.set_aside(STORE, resolved.pipeline(without))
    assert not folder.exists()
    removed.take_back(STORE, "smooth")
    assert (folder / "000.safetensors").read_text() == "newer"
    assert "smooth: taken back from data/removed/" in capsys.readouterr().err
    removed.take_back(STORE, "smooth")  # leaves what is there
    assert (folder / "000.safetensors").read_text() == "newer"
    removed.take_back(STORE, "other")  # of which there are none


# -- with DVC


def edit(folder: Path, change: Any) -> None:
    """A change of params.yaml by hand."""
    raw = YAML_SAFE.load((folder / "params.yaml").read_text(encoding="utf-8"))
    change(raw)
    YAML_SAFE.dump(raw, folder / "params.yaml")


def more(raw: dict[str, Any]) -> None:
    """A run with a data set and experts of its own."""
    raw["prepare"]["other"] = raw["prepare"]["digits"]
    raw["experts"]["more"] = {**raw["experts"]["digits-smooth"], "dataset": "other"}
    raw["runs"]["extra"] = {**raw["runs"][RUNS[0]], "dataset": "other", "experts": "more"}


def less(raw: dict[str, Any]) -> None:
    for section, name in (("prepare", "other"), ("experts", "more"), ("runs", "extra")):
        del raw[section][name]


def repro(folder: Path) -> str:
    done = call(folder, "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def kept_in_git_and_remote(folder: Path) -> None:
    for words in ("git add .", "git -c user.name=t -c user.email=t@t commit -qm state", "dvc push -q"):
        done = call(folder, *words.split())
        assert done.returncode == 0, done.stderr


def locked(folder: Path) -> dict[str, Any]:
    """The report's part of the lock file."""
    found: dict[str, Any] = YAML_SAFE.load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]["report"]
    return found


def assert_a_clone_is_clean(folder: Path, clone: Path) -> None:
    shutil.rmtree(clone, ignore_errors=True)
    for words in (("git", "clone", "-q", str(folder), str(clone)), ("dvc", "pull", "-q"), ("dvc", "status")):
        done = call(clone if clone.exists() else folder, *words)
        assert done.returncode == 0, done.stderr
    assert "up to date" in done.stdout, done.stdout


@pytest.mark.slow
def test_the_report_depends_on_the_runs_that_there_are(repository: Path, tmp_path: Path) -> None:
    call(repository, "dvc", "remote", "add", "-q", "-d", "here", str(tmp_path / "remote"))
    alone = (repository / "dvc.lock").read_bytes()
    edit(repository, more)
    repro(repository)
    kept_in_git_and_remote(repository)
    with_more, named = (repository / "dvc.lock").read_bytes(), (repository / "params.yaml").read_bytes()
    made = {path: files.digest(path) for stage, name in (("experts", "more"), ("distill", "extra"), ("evaluate", "extra"))
            for path in (repository / one for one in removed.outputs(STORE, stage, name))}  # fmt: skip

    edit(repository, less)
    said = repro(repository)
    assert (
        "no stage of params.yaml makes it: data/prepare/other, data/experts/more, data/distill/extra, data/evaluate/extra,"
        in said
    )
    assert locked(repository) == YAML_SAFE.load(alone)["stages"]["report"]
    assert "Running stage" not in repro(repository)
    assert call(repository, "git", "status", "--short").stdout.split("\n")[0] == " D data/metrics/extra.json"
    kept_in_git_and_remote(repository)
    assert_a_clone_is_clean(repository, tmp_path / "clone")

    (repository / "params.yaml").write_bytes(named)  # and back
    said = repro(repository)
    assert "more: taken back from data/removed/" in said
    assert "Stage 'distill@extra' is cached - skipping run, checking out outputs" in said
    assert (repository / "dvc.lock").read_bytes() == with_more
    assert {path: files.digest(path) for path in made} == made
    kept_in_git_and_remote(repository)
    assert_a_clone_is_clean(repository, tmp_path / "clone")
