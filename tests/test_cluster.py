"""A dask cluster in place of own processes: the same bytes whoever is lost, and no wait without an end.

Without the extra [cluster] these are skipped.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from optuna.trial import TrialState

from src.ground.errors import DivergenceError, UserError
from src.process import cluster, depot, errands, workers
from src.process.progress import Advance
from src.settings import params as reading
from src.settings import resolved
from src.settings.params import Params
from src.settings.runtime import Runtime
from src.stages import experts, prepare
from src.stages.records import experts_record
from src.store import checkpoints, files
from tests import studying
from tests.clusters import Machines, machines, until
from tests.imports import ROOT
from tests.small_run import STORE
from tests.stored import client_of
from tests.studying import RUN
from tests.test_tune import journal

pytest.importorskip("distributed", reason="the extra [cluster] is not installed")

EPOCHS = 20
OTHER = "digits-ipc1-other"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A cluster of two workers, one of which has two threads."""
    with machines(tmp_path_factory.mktemp("cluster"), (1, 2)) as found:
        yield found


def on(found: Machines, **changes: Any) -> Runtime:
    return Runtime(device="cpu", threads=1, executor="dask", address=found.address, **changes)


def told(piece: int, device: torch.device, advance: Advance, fail: int = -1) -> tuple[int, int, str | None, bool]:
    if piece == fail:
        raise DivergenceError(f"piece {piece} failed")
    advance(f"piece {piece}")
    ours = threading.current_thread() is threading.main_thread()
    return piece, torch.get_num_threads(), os.environ.get("MKL_NUM_THREADS"), ours


def test_tasks_have_their_own_threads_and_say_how_far_they_are(
    two: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the scheduler's machine exports; in the main thread of a process, in the caller's folder."""
    monkeypatch.chdir(tmp_path)
    found, peak = workers.each(told, 5, on(two).model_copy(update={"threads": 2}), 1, "pieces", 5)
    assert found == [(piece, 2, None, True) for piece in range(5)]
    assert peak > 10
    assert "pieces: 5/5" in capsys.readouterr().err
    assert not [path for path in (tmp_path / ".cache/depot").rglob("*") if path.is_file()]


def test_an_error_keeps_its_kind_and_stops_no_other_piece(
    two: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DivergenceError, match="piece 1 failed"):
        workers.each(functools.partial(told, fail=1), 3, on(two), 1, "pieces", 3)
    assert cluster.slots(on(two)) == 3


def test_a_worker_with_other_code_is_refused(two: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "made_of", lambda: "code 0")
    with pytest.raises(UserError, match=re.escape(f"has {errands.made_of()}, and the caller code 0: give both")):
        workers.each(told, 1, on(two), 1, "pieces", 1)


def died(piece: int, device: torch.device, advance: Advance) -> int:
    mark = Path(f"died-{piece}")
    if piece == 1 and not mark.exists():
        mark.touch()
        os._exit(9)
    return piece


def always_dies(piece: int, device: torch.device, advance: Advance) -> None:
    os._exit(9)


def test_a_task_whose_process_was_killed_is_done_again(two: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert workers.each(died, 3, on(two), 1, "pieces", 3)[0] == [0, 1, 2]
    with pytest.raises(UserError, match="pieces: a task lost its process again and again"):
        workers.each(always_dies, 1, on(two), 1, "pieces", 1)


def begins_and_waits(piece: int, device: torch.device, advance: Advance) -> int:
    with Path(f"begun-{piece}").open("a") as file:
        file.write(".")
    while not Path(f"go-{piece}").exists():
        time.sleep(0.05)
    return piece


def begun(piece: int) -> int:
    """How often it was."""
    path = Path(f"begun-{piece}")
    return len(path.read_text()) if path.exists() else 0


@pytest.mark.slow
def test_a_task_that_waited_for_its_turn_is_not_blamed_for_the_workers_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of them, under one task or the other as dask has it; one that has begun four times may end."""
    monkeypatch.chdir(tmp_path)
    with machines(tmp_path, (1,)) as found:

        def lose() -> None:
            left, died = {0, 1, 2}, Counter[int]()
            while died.total() < 4:
                until(lambda: any(begun(piece) > died[piece] for piece in left))
                piece = next(piece for piece in left if begun(piece) > died[piece])
                if died[piece] == 3:
                    Path(f"go-{piece}").touch()
                    left.remove(piece)
                else:
                    found.kill(-1)
                    found.add()
                    died[piece] += 1
            for piece in left:
                Path(f"go-{piece}").touch()

        thread = threading.Thread(target=lose)
        thread.start()
        assert workers.each(begins_and_waits, 3, on(found), 1, "pieces", 3)[0] == [0, 1, 2]
        thread.join()


@pytest.mark.slow
def test_a_finished_task_is_not_done_again_when_its_worker_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("go-0").touch()
    with machines(tmp_path, (1,)) as found:

        def lose() -> None:
            until(lambda: begun(1) == 1)
            time.sleep(2)  # the caller has the first one's result by then
            found.kill(0)
            found.add()
            Path("go-1").touch()

        threading.Thread(target=lose).start()
        assert workers.each(begins_and_waits, 2, on(found), 1, "pieces", 2)[0] == [0, 1]
        assert (begun(0), begun(1)) == (1, 2)


def test_workers_that_die_at_random_lose_no_task() -> None:
    """Eight of them, as tests/simulated.py has them."""
    words = ["--workers", "8", "--tasks", "32", "--seconds", "0.3", "--failures", "0.1", "--back", "0.2"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulated", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    deaths, planned, measured = map(
        float,
        re.search(r"(\d+) deaths, all 32 tasks done\nplanned (\S+) s, measured (\S+) s", done.stdout).groups(),  # type: ignore[union-attr]
    )
    assert deaths > 0
    assert 0.85 * planned < measured < 2 * planned + 2  # a small run hides no overhead


def test_what_no_cluster_can_do_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cluster.VARIABLE, raising=False)
    with pytest.raises(UserError, match=r"set runtime\.address, or AST_CLUSTER"):
        workers.each(told, 1, Runtime(executor="dask"), 1, "pieces", 1)
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    monkeypatch.setenv(cluster.VARIABLE, "")  # as one that is unset
    assert cluster.address(Runtime(address="tcp://127.0.0.1:9")) is None
    monkeypatch.setenv(cluster.VARIABLE, "tcp://127.0.0.1:9")
    with pytest.raises(UserError, match=r"no dask scheduler answers at tcp://127\.0\.0\.1:9"):
        workers.each(told, 1, Runtime(), 1, "pieces", 1)


def waits(piece: int, device: torch.device, advance: Advance) -> None:
    advance("begun")
    time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["workers", "scheduler"])
def test_a_cluster_that_is_gone_for_good_ends_the_command(lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with machines(tmp_path, (1,)) as found:

        def lose() -> None:
            time.sleep(6)
            found.kill(0) if lost == "workers" else found.scheduler.kill()  # type: ignore[union-attr]

        threading.Thread(target=lose).start()
        start = time.monotonic()
        words = "has no worker" if lost == "workers" else "does not answer"
        with pytest.raises(UserError, match=f"{words}, for 3 s: what is finished is kept"):
            workers.each(waits, 1, on(found, patience_seconds=3.0), 1, "pieces", 1)
        assert time.monotonic() - start < 50


# -- the same buffer, byte for byte


@pytest.fixture
def raw(valid_params: dict[str, Any]) -> dict[str, Any]:
    valid_params["experts"]["smooth"] |= {"count": 3, "epochs": EPOCHS, "batch_size": 64, "gradient_penalty": 2.0}
    return valid_params


def buffer(raw: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, **runtime: Any) -> Params:
    """What `experts` leaves in a folder of its own, where the digits are."""
    monkeypatch.chdir(folder)
    raw["runtime"] = {"device": "cpu", "threads": 1, "checkpoint_seconds": 0.1, **runtime}
    found = reading.parse(raw)
    prepare.run(STORE, resolved.data_set(found, "digits"))
    return found


def made(params: Params) -> list[str]:
    own = resolved.buffer(params, "smooth")
    experts.run(STORE, own)
    STORE.check_trajectories("smooth", own.settings.count, experts_record(STORE, own))
    return [files.digest(STORE.trajectories_folder("smooth")), files.digest(STORE.expert_curves_file("smooth"))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What one process makes, once for all tests."""
    return {}


def reference(alone: dict[str, list[str]], raw: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    if not alone:
        (folder / "alone").mkdir()
        alone["buffer"] = made(buffer(raw, folder / "alone", monkeypatch, workers=1))
    return alone["buffer"]


@pytest.mark.slow
def test_a_worker_that_is_lost_half_way_changes_no_byte(
    raw: dict[str, Any], alone: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of local processes, one or two, nor of a cluster of two workers, one of which is killed in the middle of an expert."""
    expected = reference(alone, raw, tmp_path, monkeypatch)
    (tmp_path / "two").mkdir()
    assert made(buffer(raw, tmp_path / "two", monkeypatch, workers=2)) == expected
    (tmp_path / "dask").mkdir()
    with machines(tmp_path, (1, 1)) as found:
        params = buffer(raw, tmp_path / "dask", monkeypatch, executor="dask", address=found.address)
        killed: list[int] = []

        def kill() -> None:
            folder = checkpoints.folder() / "experts" / "smooth"
            while not killed:
                read = [checkpoints.read(one).get("facts", {}).get("epochs", 0) for one in folder.glob("*.safetensors")]
                killed.extend(filter(None, read))
                time.sleep(0.01)
            found.kill(0)

        threading.Thread(target=kill).start()
        assert made(params) == expected
        assert 0 < killed[0] < EPOCHS


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server on this machine."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
    yield "s3://bucket/depot"
    server.stop()


def waiting(address: str) -> list[str]:
    """What is stored by its place, whole."""
    system, top = fsspec.url_to_fs(f"{address}/{depot.PLACES}")
    system.invalidate_cache()
    return [path for path in system.find(top) if not path.endswith(".tmp")]


@pytest.mark.slow
@pytest.mark.parametrize("system", ["folder", "s3"])
def test_machines_without_a_shared_folder_make_the_same(
    system: str,
    raw: dict[str, Any],
    alone: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """What they need goes through the depot, and what they made, though a worker is lost with all that was on its disk."""
    expected = reference(alone, raw, tmp_path, monkeypatch)
    (tmp_path / "caller").mkdir()
    address = request.getfixturevalue("s3") if system == "s3" else f"file://{tmp_path}/depot"
    with machines(tmp_path, (1, 1)) as found:
        params = buffer(raw, tmp_path / "caller", monkeypatch, executor="dask", address=found.address, depot=address)

        def kill() -> None:
            while not waiting(address):
                time.sleep(0.05)
            found.kill(0)

        threading.Thread(target=kill).start()
        assert made(params) == expected
        assert not waiting(address)
        STORE.trajectory_file("smooth", 2).unlink()
        assert made(params) == expected


# -- studies


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A table of methods that own processes make."""
    return table_of(tmp_path_factory.mktemp("here"), {})


def table_of(folder: Path, runtime: dict[str, Any]) -> dict[str, Any]:
    raw = studying.raw_params(students=2, rungs=1)
    raw["runtime"] |= runtime
    raw["runs"][RUN]["distill"] |= {"iterations": 2}
    raw["runs"][OTHER] = {**raw["runs"][RUN], "distill": {**raw["runs"][RUN]["distill"], "balanced_loss": False}}
    studying.folder_of(folder, raw)
    done = studying.call(folder, f"methods {RUN} {OTHER} --trials 0 --seeds 2 --workers 2")
    assert done.returncode == 0, done.stderr
    (file,) = (folder / "data/methods").glob("*.json")
    return {row["run"]: row["seeds"] for row in files.read_json(file, "")["rows"]}


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_a_table_of_methods_is_the_same(shared: bool, table: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "caller").mkdir()
    with machines(tmp_path, (1, 1)) as found:
        runtime = {"executor": "dask", "address": found.address, "depot": None if shared else str(tmp_path / "depot")}
        assert table_of(tmp_path / "caller", runtime) == table
        assert all(len(seeds["val"]) == 2 for seeds in table.values())


@pytest.mark.slow
def test_a_study_on_a_cluster_has_one_parent_and_all_its_trials(tmp_path: Path) -> None:
    (tmp_path / "caller").mkdir()
    with machines(tmp_path, (1, 1)) as found:
        raw = studying.raw_params(students=2, rungs=1)
        raw["runtime"] |= {"executor": "dask", "address": found.address}
        folder = studying.folder_of(tmp_path / "caller", raw)
        done = studying.call(folder, f"tune --run {RUN} --trials 3 --workers 2")
        assert done.returncode == 0, done.stderr
    assert [trial.state for trial in journal(folder).trials] == [TrialState.COMPLETE] * 3
    client = client_of(folder)
    rows = client.search_runs([client.get_experiment_by_name("digits-studies").experiment_id])  # type: ignore[union-attr]
    assert sorted(row.data.tags["optuna.trial"] for row in rows if "optuna.trial" in row.data.tags) == ["0", "1", "2"]
    assert {row.info.status for row in rows} == {"FINISHED"}
    assert [row.data.tags["ast.kind"] for row in rows if "mlflow.parentRunId" not in row.data.tags] == ["study"]
