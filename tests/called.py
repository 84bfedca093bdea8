"""A command of this repository, called within the test's own process."""

from __future__ import annotations

import sys

import pytest

from src import cli


def command(words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Its exit code."""
    monkeypatch.setattr(sys, "argv", ["src.cli", *words.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)
