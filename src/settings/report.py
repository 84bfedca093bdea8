"""The section `report`: the closing page."""

from __future__ import annotations

from src.settings.base import Settings


class Report(Settings):
    """The closing page."""

    title: str = "Dataset distillation"
    """Heading of the page."""
