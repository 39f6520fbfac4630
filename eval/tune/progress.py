"""Who is told how far tuning is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Is told what is being done."""

    def begin(self, step: str, total: int) -> None:
        """A step begins that asks about so many prompts."""

    def advance(self, count: int) -> None:
        """So many of them were asked."""


class Silent:
    """Tells nobody."""

    def begin(self, step: str, total: int) -> None:
        """Does nothing."""

    def advance(self, count: int) -> None:
        """Does nothing."""
