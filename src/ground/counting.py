"""Numbers of things as words, one way for all sentences."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count:,} {noun}s"
