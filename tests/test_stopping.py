"""Ctrl-C and SIGTERM at any command: one sentence, an exit code that says so, no traceback, no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState
from ruamel.yaml import YAML

from src.process import stopping
from src.studies import study
from tests import studying
from tests.children import check_gone
from tests.imports import ROOT
from tests.studying import RUN, call
from tests.test_tune import all_done, journal, poor, until, workers_of

SIGNALS = (signal.SIGINT, signal.SIGTERM)
BEGINS = "nothing is left half written, and the same command begins again"
GOES_ON = "what is done is kept, and the same command goes on from there"


def begin(folder: Path, *command: str, **variables: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal would run it."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**studying.environment(folder), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background is born deaf to Ctrl-C
    )


def words(text: str) -> tuple[str, ...]:
    return sys.executable, "-m", "src.cli", *text.split()


def answers(process: subprocess.Popen[str]) -> bool:
    """Whether the process has a handler for SIGTERM, which Python by itself has not."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def check_stops(process: subprocess.Popen[str], number: signal.Signals, sentence: str, group: bool = False) -> None:
    """Send the signal, to the whole group as a terminal does it or to the process alone; it ends as every command must."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number) if group else process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert errors.count("Stopped by") == 1
    assert f"Stopped by {number.name}: {sentence}" in " ".join(errors.split())
    assert "Traceback" not in errors + output
    assert "ignored" not in errors  # Python's word for errors of destructors
    check_gone(children, zombies_count=False)


# -- every command, as it starts: first the one that is soonest at its end

COMMANDS = {
    "track-sync": "what is not delivered still waits, and the same command goes on with it",
    "prepare": BEGINS,
    "experts": GOES_ON,
    "distill": GOES_ON,
    f"distill --run {RUN} --plan": BEGINS,
    "evaluate": GOES_ON,
    "evaluate --released cifar10-ipc10-mtt": BEGINS,
    f"export --run {RUN} --to out": BEGINS,
    "init --data digits --name x --size 8": BEGINS,
    "verify params.yaml": BEGINS,
    "report": BEGINS,
    "clean": BEGINS,
    f"tune --run {RUN}": "finished trials are kept, and the same command goes on with the others",
    f"compare {RUN} digits-ipc1-random": BEGINS,
    f"ablate --run {RUN}": "finished variants are kept, and the same command goes on with the others",
    "preset list": BEGINS,
    "bench": BEGINS,
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_second_of_every_command(number: signal.Signals, tmp_path: Path) -> None:
    """While it imports libraries, where callbacks of Python's swallow errors."""
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "params.yaml").symlink_to(ROOT / "params.yaml")
    for delay, command in enumerate(COMMANDS):
        process = begin(tmp_path, *words(command))
        until(lambda process=process: answers(process), 30)  # type: ignore[misc]
        time.sleep(delay / len(COMMANDS) / 5)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + number, (command, errors)
        assert errors.count(f"Stopped by {number.name}: ") == 1, (command, errors)
        assert "Traceback" not in errors, command
    assert not list(tmp_path.glob("data/*"))


IN_WORK = """
import sys, time
from src.process import stopping
stopping.answer()
from src import cli
from src.stages import clean
def wait(*_):
    print("at work", flush=True)
    time.sleep(60)
clean.run = wait
sys.argv = ["src.cli", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGHUP])
def test_a_command_at_work(number: signal.Signals, group: bool, tmp_path: Path) -> None:
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "params.yaml").symlink_to(ROOT / "params.yaml")
    process = begin(tmp_path, sys.executable, "-c", IN_WORK, "clean")
    assert process.stdout is not None and process.stdout.readline() == "at work\n"
    check_stops(process, number, BEGINS, group)


# -- the mechanism, in processes of a second


def script(text: str) -> subprocess.CompletedProcess[str]:
    code = "\n".join(["import signal, sys, time, weakref", "from src.process import stopping", "stopping.answer()", text])
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


SWALLOWED = """
class One: pass
def callback(_): signal.raise_signal(signal.SIGINT)
one = One()
ref = weakref.ref(one, callback)
try:
    with stopping.said():
        del one  # Python drops what the callback raises
        time.sleep(5)
        print("went on")
except stopping.InterruptedWorkError as error:
    print(error)
"""


def test_a_signal_that_python_swallows_comes_again() -> None:
    done = script(SWALLOWED)
    assert done.stdout.strip() == f"Stopped by SIGINT: {BEGINS}"
    assert not done.stderr


REPLACED = """
try:
    with stopping.said():
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            raise ImportError("numpy failed to import") from None
except stopping.InterruptedWorkError as error:
    sys.exit(error.exit_code)
"""


def test_a_signal_is_said_whatever_a_library_makes_of_it() -> None:
    done = script(REPLACED)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_work_is_done_changes_nothing(number: signal.Signals) -> None:
    done = script(
        f"import atexit\natexit.register(lambda: signal.raise_signal({int(number)}))\nwith stopping.said():\n    pass"
    )
    assert (done.returncode, done.stderr) == (0, "")


TWICE = """
with stopping.said():
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.raise_signal(signal.SIGINT)
        time.sleep(60)
"""


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    done = script(TWICE)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_too_late_for_long_work_ends_what_comes_after(number: signal.Signals) -> None:
    """`experts` without a name must not go on with the next set."""
    came: list[int] = []
    before = signal.signal(number, lambda number, frame: came.append(number))
    try:
        with stopping.heeded():
            signal.raise_signal(number)
            assert not came
        assert came == [number]
        with stopping.heeded():
            signal.raise_signal(number)
            with pytest.raises(stopping.InterruptedWorkError):
                stopping.check()
        assert came == [number]
        assert not stopping.requested()
    finally:
        signal.signal(number, before)


# -- downloads


class _Stalls(BaseHTTPRequestHandler):
    """A server that sends a little of a large file and then nothing."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000000")
        self.end_headers()
        self.wfile.write(bytes(100_000))
        self.wfile.flush()
        time.sleep(60)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def stalling() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Stalls) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_download_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "src").symlink_to(ROOT / "src")
    raw = studying.raw_params()
    raw["prepare"]["digits"] |= {"source": "tiny_imagenet", "size": 64}
    YAML(typ="safe").dump(raw, tmp_path / "params.yaml")
    with stalling() as proxy:
        process = begin(tmp_path, *words("prepare --dataset digits"), http_proxy=proxy)
        until(lambda: bool(list(tmp_path.glob("data/*/.*.tmp/*"))) or process.poll() is not None, 60)
        check_stops(process, number, BEGINS)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert not list((tmp_path / "data").glob("*/.*.tmp"))


# -- commands with processes of their own


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studying.folder_of(tmp_path_factory.mktemp("stopping"), poor())


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("number", SIGNALS)
def test_bench(number: signal.Signals, group: bool, repository: Path) -> None:
    process = begin(repository, *words("bench experts --size 16 --width 16 --images 200000 --workers 2 --compile off"))
    until(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 2)  # the worker, and processes of its own
    check_stops(process, number, BEGINS, group)


def text_of_logs(folder: Path, kind: str) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in folder.glob(f"data/{kind}/*/**/*.txt"))


def stopped_again_and_again(folder: Path, command: str, begun: Callable[[], bool], sentence: str) -> None:
    """By both signals: one to its group, as a terminal sends it, one to the process alone."""
    for number, group in ((signal.SIGINT, True), (signal.SIGTERM, False)):
        process = begin(folder, *words(command))
        until(lambda process=process: (begun() and bool(workers_of(process))) or process.poll() is not None)  # type: ignore[misc]
        check_stops(process, number, sentence, group)


@pytest.mark.slow
def test_tune_goes_on(tmp_path: Path) -> None:
    """The same command keeps finished trials, and ends with exactly as many as were asked for."""
    folder = studying.folder_of(tmp_path, poor())
    command = f"tune --run {RUN} --trials 5 --workers 2"

    def at_work() -> bool:
        if not list(folder.glob("data/tune/*/journal.log")):
            return False
        return bool(journal(folder).get_trials(states=(TrialState.RUNNING,)))

    sentence = "finished trials are kept, and the same command goes on with the others"
    stopped_again_and_again(folder, command, at_work, sentence)
    assert "Traceback" not in text_of_logs(folder, "tune")
    before = {trial.number: trial.values for trial in study.finished(journal(folder))}
    done = call(folder, command)
    assert done.returncode == 0, done.stderr
    all_done(journal(folder), 5)
    assert {trial.number: trial.values for trial in journal(folder).trials if trial.number in before} == before


@pytest.mark.slow
def test_tune_while_its_experts_are_made(tmp_path: Path) -> None:
    raw = poor()
    raw["experts"]["digits-smooth"] |= {"epochs": 4000}
    folder = studying.folder_of(tmp_path, raw)
    sentence = "finished trials are kept, and the same command goes on with the others"
    stopped_again_and_again(
        folder, f"tune --run {RUN}", lambda: bool(list(folder.glob(".cache/checkpoints/experts/*/*"))), sentence
    )
    process = begin(folder, *words(f"tune --run {RUN}"))
    assert process.stderr is not None
    assert any("resumed at" in line for line in process.stderr)
    check_stops(process, signal.SIGTERM, sentence)


@pytest.mark.slow
def test_ablate_goes_on(tmp_path: Path) -> None:
    """Each time from what it has; nothing is made twice."""
    raw = studying.raw_params(students=2, rungs=1)
    raw["runs"][RUN]["distill"] |= {"iterations": 3}
    folder = studying.folder_of(tmp_path, raw)

    def made() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.glob("data/ablate/*/results/*.json")}

    kept: dict[Path, int] = {}
    for number, group in ((signal.SIGINT, True), (signal.SIGTERM, False)):
        process = begin(folder, *words(f"ablate --run {RUN} --seeds 2 --workers 2"))
        until(lambda process=process, kept=kept: len(made()) > len(kept) or process.poll() is not None)  # type: ignore[misc]
        check_stops(process, number, "finished variants are kept, and the same command goes on with the others", group)
        assert made().items() >= kept.items()
        kept = made()
    assert "Traceback" not in text_of_logs(folder, "ablate")


@pytest.mark.slow
def test_a_worker_of_ablate_that_is_killed_is_a_sentence(repository: Path) -> None:
    process = begin(repository, *words(f"ablate --run {RUN} --seeds 2 --workers 2"))
    until(lambda: len(workers_of(process)) == 2)
    workers_of(process)[0].kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "a worker was killed, most often because memory ran out: the same command goes on" in " ".join(errors.split())
    assert "Traceback" not in errors


def test_a_block_within_a_block_leaves_the_outer_one_as_it_was() -> None:
    """A run that makes its initial one first agrees on a stop afterwards too."""
    with stopping.together():
        with stopping.together():
            pass
        assert stopping._mark.together
    assert not stopping._mark.together
