"""Errors a user can act on. The command line prints their sentence without a traceback; all else is a defect."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib.metadata import distributions

DISTRIBUTION = "smooth-distillation"  # what pip calls this package
EXTRA = "pipeline"  # of it: all that the commands take
CLUSTER = "cluster"  # of it: what `runtime.executor: dask` takes
SHOWN = 12  # names that a refusal offers
ENCODERS = "encoders"  # of it: what frozen encoders of texts take
# torch's words on a CPU, on CUDA, and for more bytes than 64 bits count
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "Storage size calculation overflowed")


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
        nearest = difflib.get_close_matches(name, known, SHOWN, cutoff=0.0) if len(known) > SHOWN else known
        choices = f"one of {', '.join(nearest) or 'none'}"
        if len(known) > len(nearest):
            choices += f" (the nearest of {len(known)})"
        super().__init__(f"no {kind} is named '{name}': choose {choices}, or add it to {section} in params.yaml")


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


def out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory ran out. Torch says so in a RuntimeError, which is known by its words, without torch."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def lacking(error: ModuleNotFoundError) -> str:
    """A package is not there."""
    return f"{sys.executable} has no package {error.name}: {installing()}"


def installing(extra: str = EXTRA) -> str:
    """What brings a package that is not there. Of what pip has installed it leaves a record, which a clone's build has not.

    In a clone the environment is most often not the one in which `dvc repro` was to start a stage.
    """
    if any(found.read_text("INSTALLER") for found in distributions(name=DISTRIBUTION)):
        return f"install it with `pip install '{DISTRIBUTION}[{extra}]'`"
    if extra == CLUSTER:
        return "install it with `pip install distributed --constraint constraints.txt`, where all of its workers run too"
    if extra == ENCODERS:
        return "install it with `pip install transformers --constraint constraints.txt`"
    return "activate the environment with `source .venv/bin/activate`, which `make repro` makes"
