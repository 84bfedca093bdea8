"""The file of an Optuna study: a line an operation, appended by many processes and cut off by a full disk or a kill.

Optuna appends behind half a line and can't read the file from then on. Here what follows the last whole line is cut off before
anything is appended, and the lock is the kernel's, which frees that of a killed process at once.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock
from optuna.storages.journal import JournalFileBackend

from src.ground.errors import ArtifactError
from src.process.progress import say

JOURNAL = "journal.log"
POLL_SECONDS = 0.005  # an append takes about as long
SHOWN = 60  # characters of what is cut off


class StudyLog(JournalFileBackend):
    """Optuna's file in a study's folder, which is there. Raises ArtifactError where a line that others follow is damaged."""

    def __init__(self, folder: Path) -> None:
        self.path, self.lock = folder / JOURNAL, FileLock(folder / "journal.lock", poll_interval=POLL_SECONDS)
        super().__init__(str(self.path), self.lock)  # type: ignore[arg-type] # it has what is asked for: acquire and release
        with self.lock:
            mend(self.path)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations; half a line may have come since this process opened the file, from its own last attempt too."""
        with self.lock:
            if not _ends_whole(self.path):
                mend(self.path)
            super().append_logs(logs)


def mend(path: Path) -> None:
    """Complete the last line where it lacks its end alone, or cut it off where it is no operation, and say so.

    Nobody may write meanwhile. Raises ArtifactError where an earlier line is no operation: what follows it can't be understood.
    """
    with path.open("r+b") as file:
        lines = file.readlines()
        damaged = next((number for number, line in enumerate(lines) if not _is_operation(line)), None)
        if damaged is None:
            if lines and not lines[-1].endswith(b"\n"):
                _write(file, sum(map(len, lines)), b"\n")
        elif damaged < len(lines) - 1:
            raise ArtifactError(
                f"{path}, line {damaged + 1} of {len(lines)}, is damaged: bring the file back from a copy, or delete that line "
                "and all that follow it, and the same command goes on from there"
            )
        else:
            _write(file, sum(map(len, lines[:damaged])), b"")
            cut = f"its last line, {damaged + 1}, was half written and is cut off: {lines[damaged][:SHOWN]!r}"
            say(f"Warning: {path}: {cut}; the study goes on from the line before")


def _is_operation(line: bytes) -> bool:
    """Whether it is one as Optuna writes them, all of it: half of a JSON object is none."""
    try:
        found = json.loads(line.decode("utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and {"op_code", "worker_id"} <= set(found)


def _write(file: BinaryIO, place: int, end: bytes) -> None:
    """Let the file end so, at this place."""
    file.seek(place)
    file.truncate()
    file.write(end)
    file.flush()
    os.fsync(file.fileno())


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
