"""The command line: one thin command for each stage of the pipeline, and for what stands beside it.

A module a group of commands. torch and mlflow are imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

from src.process import stopping


def run() -> None:
    """A process of its own: signals are answered ahead of imports that take a while."""
    stopping.answer()
    main()


def main() -> None:
    """Run the app; errors a user can act on, and signals, end in a sentence on stderr, without a traceback."""
    from src.cli.app import main as begin

    begin()
