"""Errors a user can act on. The command line prints their sentence without a traceback; all else is a defect."""

from __future__ import annotations

import sys
from collections.abc import Sequence


class UserError(Exception):
    """One clear sentence: the value, the rule, the remedy."""

    exit_code = 1


class ParamsError(UserError):
    """params.yaml breaks rules; carries every breach found, each with its dotted path."""

    exit_code = 2

    def __init__(self, source: str, problems: Sequence[tuple[str, str]]):
        self.problems = tuple(problems)
        lines = "\n".join(f"  {path}: {text}" for path, text in self.problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        super().__init__(f"{source} has {count}:\n{lines}")


class UnknownNameError(UserError):
    """A run, data set or set of experts that params.yaml does not name."""

    exit_code = 2

    def __init__(self, kind: str, name: str, section: str, known: Sequence[str]):
        choices = ", ".join(known) or "none"
        super().__init__(f"no {kind} is named '{name}': choose one of {choices}, or add it to {section} in params.yaml")


class ArtifactError(UserError):
    """An artifact is missing, damaged, foreign, or was made with other settings."""


class DataError(UserError):
    """The real data do not allow what was asked for."""


class DivergenceError(UserError):
    """A quantity of the optimisation stopped being finite, or left all bounds of sense."""


class InterruptedWorkError(UserError):
    """A signal asked long work to stop; its checkpoint is where the same command goes on."""


class TrackingError(InterruptedWorkError):
    """The tracking store failed where the user asked for strict tracking; all that was done is kept."""


def lacking(error: ModuleNotFoundError) -> str:
    """A package is not there: most often the environment is not, in which `dvc repro` was to start a stage."""
    remedy = "activate the environment with `source .venv/bin/activate`, which `make repro` makes"
    return f"Error: {sys.executable} has no package {error.name}: {remedy}"
