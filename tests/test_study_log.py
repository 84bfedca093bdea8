"""A study's file, cut off and damaged in every way: finished trials stay, the one that was cut off is taken up again."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from filelock import FileLock
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from src.ground.errors import ArtifactError
from src.studies import study, study_log
from src.studies.study_log import JOURNAL, StudyLog, mend
from tests.test_tune import all_done, cheap, start_cheap, until


def finish(folder: Path, trials: int) -> optuna.Study:
    """Work on the study until it has so many trials."""
    plan = cheap(folder)
    plan.begin({"x": 0.5})
    opened = plan.open()
    with plan.worker() as name:
        while (trial := plan.claim(opened, name, trials)) is not None:
            study.complete(opened, trial, (trial.params["x"], trial.params["x"]))
    return opened


def as_optuna_reads(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    return optuna.load_study(study_name="cheap", storage=storage).trials


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a study of three trials."""
    finish(tmp_path, 3)
    return tmp_path


@pytest.mark.parametrize("part", range(12))
def test_a_study_that_is_cut_off_anywhere_goes_on(part: int, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever in the lines of the third trial the disk was full."""
    path, before = begun / JOURNAL, as_optuna_reads(begun)
    whole = path.read_bytes()
    start = next(i for i, line in enumerate(whole.splitlines(True)) if json.loads(line).get("trial_id") == 2)
    first = len(b"".join(whole.splitlines(True)[:start]))
    place = first + (len(whole) - first) * part // 12 + 1
    path.write_bytes(whole[:place])
    cut = whole[:place].rpartition(b"\n")[2]
    opened = finish(begun, 5)
    all_done(opened, 5)
    after = as_optuna_reads(begun)
    assert [(t.number, t.params, t.values) for t in after[:3]] == [(t.number, t.params, t.values) for t in before]
    assert [t.datetime_complete for t in after[:2]] == [t.datetime_complete for t in before[:2]]
    assert all(trial.state == TrialState.COMPLETE for trial in after)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("was half written and is cut off") == bool(cut)
    if cut:
        number = whole[:place].count(b"\n") + 1
        assert f"{path}: its last line, {number}, was half written and is cut off: {cut[:20]!r}"[:-1] in said


def test_every_cut_leaves_whole_lines(begun: Path) -> None:
    path = begun / JOURNAL
    whole = path.read_bytes()
    for place in range(0, len(whole), 11):
        path.write_bytes(whole[:place])
        mend(path)
        lines = whole[:place].splitlines(keepends=True)
        kept = b"".join(line for line in lines if line.endswith(b"\n"))
        assert path.read_bytes() == (whole[: place + 1] if whole[place : place + 1] == b"\n" else kept)


def test_a_last_line_that_only_lacks_its_end_is_kept(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = begun / JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    mend(path)
    assert path.read_bytes() == whole
    assert not capsys.readouterr().err


HALF = '{"op_code":8,"worker_id":"w","trial_id":0,"user_attr":{"sentence":"gerät'
TAILS = {
    "half a line": HALF.encode(),
    "half a character": HALF.encode()[:-2],
    "zeros": bytes(4096),
    "half a line and the next": b'{"op_code":8,"worker' + b'{"op_code":8,"worker_id":"w","trial_id":0,"user_attr":{"a":1}}\n',
    "a number": b"12",
    "text that is no operation": b"[1, 2]\n",
}


@pytest.mark.parametrize("tail", TAILS)
def test_what_follows_the_last_whole_line_is_cut_off_and_said(
    tail: str, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = begun / JOURNAL
    whole, before = path.read_bytes(), as_optuna_reads(begun)
    path.write_bytes(whole + TAILS[tail])
    mend(path)
    assert path.read_bytes() == whole
    said = " ".join(capsys.readouterr().err.split())
    assert f"{path}: its last line, {len(whole.splitlines()) + 1}, was half written and is cut off" in said
    assert "\0" not in said
    assert [trial.values for trial in finish(begun, 4).trials[:3]] == [trial.values for trial in before]


@pytest.mark.parametrize("end", [b"", b"{\n", b'{"op_code":8'])
def test_a_damaged_line_that_others_follow_is_refused(end: bytes, begun: Path) -> None:
    path = begun / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3][:9] + b"\n"
    damaged = b"".join(lines) + end
    path.write_bytes(damaged)
    count = len(lines) + bool(end)
    with pytest.raises(ArtifactError, match=f"journal.log, line 4 of {count}, is damaged: bring the file back .* or delete"):
        cheap(begun).open()
    assert path.read_bytes() == damaged
    path.write_bytes(b"".join(lines[:3]))  # as the sentence advises
    all_done(finish(begun, 3), 3)


def test_a_failed_append_does_no_harm_to_the_next(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk that has room again while the same process goes on."""
    path = begun / JOURNAL
    backend, kept = StudyLog(begun), JournalFileBackend.append_logs
    whole = path.read_bytes()

    def full(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        path.write_bytes(whole + b'{"op_code":8,"wor')
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    operation = {"op_code": 8, "worker_id": "w", "trial_id": 0, "user_attr": {"a": 1}}
    with pytest.raises(OSError, match="No space"):
        backend.append_logs([operation])
    monkeypatch.setattr(JournalFileBackend, "append_logs", kept)
    backend.append_logs([operation])
    assert path.read_bytes() == whole + json.dumps(operation, separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize("target", ["journal.log", "/no/such/place/journal.log"])
def test_optunas_lock_of_a_killed_process_keeps_nobody_waiting(target: str, begun: Path) -> None:
    """Optuna's own waits 30 s for it, and for ever where the folder was moved since."""
    (begun / "journal.log.lock").symlink_to(target)
    start = time.monotonic()
    all_done(finish(begun, 4), 4)
    assert time.monotonic() - start < 10


@pytest.mark.slow
def test_workers_go_on_while_another_leaves_half_a_line(tmp_path: Path) -> None:
    trials = 10
    workers = [start_cheap(tmp_path, trials) for _ in range(2)]
    opened = cheap(tmp_path).open()
    for count in (2, 4, 6):
        until(lambda count=count: len(study.finished(opened)) >= count)  # type: ignore[misc]
        with FileLock(tmp_path / "journal.lock"), (tmp_path / JOURNAL).open("ab") as file:
            file.write(b'{"op_code":8,"worker_id":"gone","tri')
    assert [worker.wait() for worker in workers] == [0, 0]
    all_done(opened, trials)
    assert len(as_optuna_reads(tmp_path)) == trials
    assert all(study_log._is_operation(line) for line in (tmp_path / JOURNAL).read_bytes().splitlines())
