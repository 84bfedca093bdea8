"""Long stages are killed and stopped in every way, and end in the bytes of a run that nothing interrupted."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from src.store import files
from tests.children import check_gone
from tests.imports import ROOT
from tests.stored import client_of
from tests.test_pipeline import call

pytestmark = pytest.mark.slow

RUN = "digits-ipc1-ast"
KILLS = int(os.environ.get("KILLS", "6"))  # of each stage
CHECKPOINTS = 72  # a stage here writes about so many
STAGES: dict[str, tuple[str, ...]] = {
    "experts": ("data/experts/digits-smooth",),
    "distill": (f"data/distill/{RUN}",),
    "evaluate": (f"data/evaluate/{RUN}", f"data/metrics/{RUN}.json"),
}
OPTIONS = {"experts": ("--experts", "digits-smooth"), "distill": ("--run", RUN), "evaluate": ("--run", RUN)}


def words(stage: str) -> tuple[str, ...]:
    return sys.executable, "-m", "src.cli", stage, *OPTIONS.get(stage, ())


def write_params(folder: Path, change: Callable[[dict[str, Any]], None] = lambda raw: None, base: Path = ROOT) -> None:
    """The parameters of `base`, changed."""
    yaml = YAML(typ="safe")
    raw = yaml.load((base / "params.yaml").read_text(encoding="utf-8"))
    change(raw)
    yaml.dump(raw, folder / "params.yaml")


def tiny(raw: dict[str, Any]) -> None:
    """One run, cut down to seconds, with a checkpoint after every step."""
    raw["runtime"] |= {"device": "cpu", "threads": 1, "checkpoint_seconds": 0}
    raw["runs"] = {RUN: {**raw["runs"][RUN], "experts": "digits-smooth"}}
    raw["experts"] = {"digits-smooth": {**raw["experts"]["digits-smooth"], "count": 2, "epochs": 4, "clipping_epochs": 2}}
    raw["distill"]["ast"] |= {"syn_steps": 4, "snapshot_every": 30}
    raw["runs"][RUN]["distill"] |= {"iterations": 60, "max_start_epoch": 2}
    raw["evaluate"]["mtt"] |= {"epochs": 60, "students": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where every stage ran without interruption."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "data/experts/None", folder / "data/experts/None")
    write_params(folder, tiny)
    for stage in ("prepare", *STAGES):
        done = call(folder, *words(stage))
        assert done.returncode == 0, done.stderr
        assert "resumed" not in done.stderr
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy without partial work and tracking."""
    path = tmp_path / "copy"
    shutil.copytree(finished, path, ignore=shutil.ignore_patterns(".cache", "mlflow.db", "mlartifacts"))
    return path


def forget(folder: Path, stage: str) -> None:
    for out in STAGES[stage]:
        shutil.rmtree(folder / out) if (folder / out).is_dir() else (folder / out).unlink()


def digests(folder: Path, stage: str) -> dict[str, str]:
    """Of every file of a stage's artifacts, half-written ones included."""
    outs = [folder / out for out in STAGES[stage]]
    paths = [path for out in outs for path in (out.rglob("*") if out.is_dir() else [out]) if path.is_file()]
    return {path.relative_to(folder).as_posix(): files.digest(path) for path in paths if path.name != ".gitignore"}  # DVC's


def begin(folder: Path, *command: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal would run it."""
    bin_folder = Path(sys.executable).parent
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    environment |= {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background is born deaf to Ctrl-C
    )


def after_checkpoints(process: subprocess.Popen[str], folder: Path, stage: str, count: int) -> bool:
    """Wait until `count` checkpoints were seen to be replaced; False where the process ended before."""
    seen: dict[Path, int] = {}
    while count and process.poll() is None:
        for path in (folder / ".cache/checkpoints" / stage).rglob("*.safetensors"):
            try:
                modified = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            count -= path in seen and seen[path] != modified and count > 0
            seen[path] = modified
        time.sleep(0.001)
    return process.poll() is None


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def runs(folder: Path) -> list[Any]:
    client = client_of(folder)
    return list(client.search_runs(["1"]))


def steps(folder: Path, run_id: str, metric: str) -> list[int]:
    client = client_of(folder)
    return sorted(point.step for point in client.get_metric_history(run_id, metric))


@pytest.mark.parametrize(("stage", "workers"), [("experts", 1), ("experts", 2), ("distill", 1), ("evaluate", 1)])
def test_killed_again_and_again_it_ends_in_the_same_bytes(stage: str, workers: int, finished: Path, folder: Path) -> None:
    forget(folder, stage)
    write_params(folder, lambda raw: raw["runtime"].update(workers=workers), base=finished)
    chance, killed, resumed = random.Random(f"{stage} {workers}"), 0, 0
    while killed < KILLS:
        process = begin(folder, *words(stage))
        if not after_checkpoints(process, folder, stage, chance.randint(1, max(2, CHECKPOINTS // KILLS))):
            break
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        code, errors = ended(process)
        killed += code == -signal.SIGKILL
        resumed += "resumed at" in errors
    code, errors = ended(begin(folder, *words(stage)))
    assert code == 0, errors
    assert killed >= 2
    assert resumed + ("resumed at" in errors) >= 2
    assert digests(folder, stage) == digests(finished, stage)
    print(f"{stage}, {workers} processes: {killed} kills survived")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stage", STAGES)
def test_asked_to_stop_it_keeps_its_work(stage: str, number: signal.Signals, finished: Path, folder: Path) -> None:
    forget(folder, stage)
    process = begin(folder, *words(stage))
    assert after_checkpoints(process, folder, stage, 5)
    start = time.monotonic()
    process.send_signal(number)
    code, errors = ended(process)
    assert time.monotonic() - start < 10
    assert code == 128 + number, errors
    assert errors.count(f"Stopped by {number.name}: what is done is kept") == 1
    assert "Traceback" not in errors
    assert [run.info.status for run in runs(folder)] == ["KILLED"]
    code, errors = ended(begin(folder, *words(stage)))
    assert code == 0, errors
    assert "resumed at" in errors
    (run,) = runs(folder)
    assert run.info.status == "FINISHED"
    metric, count = {"experts": ("val_accuracy/expert-001", 4), "distill": ("matching_loss", 60)}.get(stage, ("syn_lr", 60))
    found = steps(folder, run.info.run_id, metric)
    assert len(found) == len(set(found)) == count
    assert digests(folder, stage) == digests(finished, stage)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(number: signal.Signals, finished: Path, folder: Path) -> None:
    forget(folder, "experts")
    write_params(folder, lambda raw: raw["runtime"].update(workers=2), base=finished)
    process = begin(folder, *words("experts"))
    assert after_checkpoints(process, folder, "experts", 5)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does it
    else:
        process.send_signal(number)
    code, errors = ended(process)
    assert code == (-number if number == signal.SIGKILL else 128 + number), errors
    assert "Traceback" not in errors
    check_gone(children)
    code, errors = ended(begin(folder, *words("experts")))
    assert code == 0, errors
    assert digests(folder, "experts") == digests(finished, "experts")


def test_a_process_that_the_kernel_killed_is_said_and_its_work_goes_on(finished: Path, folder: Path) -> None:
    forget(folder, "experts")
    write_params(folder, lambda raw: raw["runtime"].update(workers=2), base=finished)
    process = begin(folder, *words("experts"))
    assert after_checkpoints(process, folder, "experts", 5)
    workers = [child for child in psutil.Process(process.pid).children() if "LokyProcess" in " ".join(child.cmdline())]
    workers[0].kill()
    code, errors = ended(process)
    assert code == 1
    assert "memory ran out: set runtime.workers below 2" in errors
    assert "Traceback" not in errors
    code, errors = ended(begin(folder, *words("experts")))
    assert code == 0, errors
    assert "resumed at" in errors
    assert digests(folder, "experts") == digests(finished, "experts")


def test_more_experts_train_only_the_new_ones(finished: Path, folder: Path) -> None:
    shutil.copytree(finished / ".cache/checkpoints", folder / ".cache/checkpoints")
    kept = {path: path.stat().st_mtime_ns for path in (folder / "data/experts/digits-smooth/trajectories").iterdir()}
    write_params(folder, lambda raw: raw["experts"]["digits-smooth"].update(count=3), base=finished)
    done = call(folder, *words("experts"))
    assert done.returncode == 0, done.stderr
    assert "resumed at 8 of 12 epochs of 3 experts" in done.stderr
    assert all(path.stat().st_mtime_ns == modified for path, modified in kept.items())
    more = digests(folder, "experts")
    shutil.rmtree(folder / ".cache")
    forget(folder, "experts")
    done = call(folder, *words("experts"))
    assert "resumed" not in done.stderr
    assert digests(folder, "experts") == more
    write_params(folder, lambda raw: raw["experts"]["digits-smooth"].update(count=2), base=finished)
    assert call(folder, *words("experts")).returncode == 0
    assert digests(folder, "experts") == digests(finished, "experts")


def test_more_iterations_go_on_where_the_run_ended(finished: Path, folder: Path) -> None:
    """To the bytes of a run that had so many from the start; fewer begin anew, and cost nothing of what was further."""
    shutil.copytree(finished / ".cache/checkpoints", folder / ".cache/checkpoints")
    write_params(folder, lambda raw: raw["runs"][RUN]["distill"].update(iterations=75), base=finished)
    done = call(folder, *words("distill"))
    assert done.returncode == 0, done.stderr
    assert "resumed at iteration 60 of 75" in done.stderr
    (run,) = runs(folder)
    assert steps(folder, run.info.run_id, "matching_loss") == list(range(75))
    more = digests(folder, "distill")
    shutil.rmtree(folder / ".cache")
    forget(folder, "distill")
    assert "resumed" not in call(folder, *words("distill")).stderr
    assert digests(folder, "distill") == more
    write_params(folder, base=finished)
    said = call(folder, *words("distill")).stderr
    assert "its 75 iterations, more than 60, are kept apart" in said and "resumed" not in said
    assert digests(folder, "distill") == digests(finished, "distill")
    write_params(folder, lambda raw: raw["runs"][RUN]["distill"].update(iterations=75), base=finished)
    assert "resumed at iteration 75 of 75" in call(folder, *words("distill")).stderr
    assert digests(folder, "distill") == more


@pytest.mark.parametrize("stage", STAGES)
def test_other_settings_and_damage_start_again(stage: str, finished: Path, folder: Path) -> None:
    forget(folder, stage)
    process = begin(folder, *words(stage))
    assert after_checkpoints(process, folder, stage, 5)
    process.kill()
    ended(process)
    write_params(folder, lambda raw: raw["runtime"].update(precision="bfloat16"), base=finished)
    other = begin(folder, *words(stage))
    assert after_checkpoints(other, folder, stage, 2)
    other.kill()
    assert "resumed" not in ended(other)[1]
    write_params(folder, base=finished)
    for path in (folder / ".cache/checkpoints" / stage).rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-7])
    code, errors = ended(begin(folder, *words(stage)))
    assert code == 0, errors
    assert "is damaged" in errors
    assert "resumed" not in errors
    assert digests(folder, stage) == digests(finished, stage)


def test_the_same_work_twice_at_once_is_refused(finished: Path, folder: Path) -> None:
    forget(folder, "distill")
    process = begin(folder, *words("distill"))
    assert after_checkpoints(process, folder, "distill", 1)
    process.send_signal(signal.SIGSTOP)
    second = call(folder, *words("distill"))
    assert second.returncode == 1
    assert f"distill {RUN} is being made by another process: wait for its end, or stop it" in second.stderr
    process.kill()
    ended(process)
    code, errors = ended(begin(folder, *words("distill")))
    assert code == 0, errors
    assert digests(folder, "distill") == digests(finished, "distill")


def test_through_dvc(finished: Path, folder: Path) -> None:
    """Ctrl-C reaches dvc and stage; a dvc that is killed takes its stage along; dvc.lock is that of a run in one go."""
    for command in ("git init -q", "dvc init -q"):
        assert call(folder, *command.split()).returncode == 0
    for stage in STAGES:
        forget(folder, stage)
    for number, target in ((signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)):
        process = begin(folder, "dvc", "repro", "experts@digits-smooth")
        assert after_checkpoints(process, folder, "experts", 8)
        children = psutil.Process(process.pid).children(recursive=True)
        target(process.pid, number)
        code, errors = ended(process)
        assert code != 0
        assert "Traceback" not in errors
        check_gone(children)
    done = call(folder, "dvc", "repro", f"evaluate@{RUN}")
    assert done.returncode == 0, done.stderr
    assert "resumed at" in done.stderr
    for stage in STAGES:
        assert digests(folder, stage) == digests(finished, stage)
    assert "Running stage" not in call(folder, "dvc", "repro", f"evaluate@{RUN}").stdout


def test_clean_lists_and_deletes_what_is_stale(finished: Path, folder: Path) -> None:
    forget(folder, "distill")
    process = begin(folder, *words("distill"))
    assert after_checkpoints(process, folder, "distill", 3)
    process.terminate()  # a kill may leave a file half-written, which is stale
    ended(process)
    listed = call(folder, *words("clean"))
    assert "current" in listed.stdout
    assert "stale" not in listed.stdout
    assert "0 of 1 files" in listed.stderr
    write_params(folder, lambda raw: raw["runs"][RUN]["distill"].update(lr_img=1.0), base=finished)
    assert "stale" in call(folder, *words("clean")).stdout
    assert "1 of 1 files" in call(folder, *words("clean"), "--yes").stderr
    assert not list((folder / ".cache/checkpoints").rglob("*.safetensors"))
    assert digests(folder, "experts") == digests(finished, "experts")
