"""`python -m src.cli`."""

from src.cli import run

run()
