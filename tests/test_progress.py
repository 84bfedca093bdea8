"""Times and rates are read at a glance, and plain lines say both."""

from __future__ import annotations

import pytest

from src.ground.durations import duration
from src.process import progress


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 s"),
        (0.0123456, "0.0123 s"),
        (59.94, "59.9 s"),
        (61, "1 min 1 s"),
        (200, "3 min 20 s"),
        (25_500, "7 h 5 min"),
        (183_700, "2 d 3 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("rate", "words"), [(12.46, "12.5/s"), (1.0, "1.0/s"), (0.68, "1.47 s each"), (1 / 200, "3 min 20 s each")]
)
def test_rates(rate: float, words: str) -> None:
    assert progress.pace(rate) == words


def test_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 400.0, 401.0, 4400.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress("experts", 23, done=20) as advance:
        advance("validation 40 %")
        advance("too soon after the last line")
        advance()
    assert capsys.readouterr().err.splitlines() == [
        "experts: 21/23, 6 min 40 s each, 13 min 20 s left, validation 40 %",
        "experts: 23/23, 24 min 26 s each, done in 1 h 13 min",
    ]
