"""The package's own modules and their imports, read from its source."""

from __future__ import annotations

from pathlib import Path

from src.store import code

ROOT = Path(__file__).parent.parent


def modules() -> list[str]:
    """Every module of the package, as a path from the repository's top."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*.py"))


def imported(module: str) -> set[str]:
    """Modules of the package that a module imports, wherever in its text."""
    return set(code.imported(module))
