"""Resumable runs: each cell's results are one JSON file, written when the cell is done.

An interrupted run goes on with the cells whose file is missing, or was written under another identity.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

C = TypeVar("C", bound="Cell")


class Cell(abc.ABC):
    """One unit of a run."""

    #: Indent of the JSON file.
    INDENT: ClassVar[int | None] = None

    @abc.abstractmethod
    def path(self, out: Path) -> Path:
        """The file of its results, below the run's folder."""

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that the results depend on, as JSON values."""

    @property
    def title(self) -> str | None:
        """What `run` reports before it evaluates the cell; None: nothing."""
        return None

    def finished(self, out: Path) -> bool:
        """Whether a file with results of this identity exists."""
        path = self.path(out)
        return path.exists() and self.read(out)["identity"] == self.identity()

    def read(self, out: Path) -> dict[str, Any]:
        """The results on disk, with the identity that they were written under."""
        results: dict[str, Any] = json.loads(self.path(out).read_text())
        return results

    def write(self, out: Path, results: dict[str, Any]) -> None:
        """Write results and identity. The file appears under its name only when it is complete."""
        path = self.path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"identity": self.identity()} | results, indent=self.INDENT) + "\n")
        partial.replace(path)


def run(
    cells: Sequence[C],
    out: Path,
    evaluate: Callable[[C], dict[str, Any] | None],
    note: Callable[[str], None] = lambda text: None,
    skip: Callable[[int], None] = lambda count: None,
) -> None:
    """Evaluate the cells that are not finished, and write each as soon as it is done.

    Args:
        cells: in the order in which they run.
        out: folder of results; cells finished there earlier are not run again.
        evaluate: gives a cell's results, or None if another process writes them.
        note: receives messages on progress.
        skip: receives the number of cells that were finished already.
    """
    # Decided before any cell runs: the processes of a distributed run must agree on it.
    todo = [cell for cell in cells if not cell.finished(out)]
    finished = len(cells) - len(todo)
    if finished:
        note(f"{finished} of {len(cells)} cells are there already")
        skip(finished)
    for i, cell in enumerate(todo, 1):
        if cell.title is not None:
            note(f"[{i}/{len(todo)}] {cell.title}")
        results = evaluate(cell)
        if results is not None:
            cell.write(out, results)
