"""Resumable runs: each cell's results are one JSON file, written when the cell is done.

An interrupted run goes on with the cells whose file is missing. The name of a file ends in a hash of all that its
results depend on, so that runs of different models, policies, options or versions share a folder, also on file systems
that ignore case.
"""

from __future__ import annotations

import abc
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from .errors import CommandError

C = TypeVar("C", bound="Cell")

#: Folder of the cells below a run's folder.
CELLS = "cells"
_DIGITS = 12  # of the hash in a file's name
_HASHED = re.compile(rf"-[0-9a-f]{{{_DIGITS}}}\.json$")
_LONGEST = 80  # characters of a readable name; file systems take 255 bytes


class Cell(abc.ABC):
    """One unit of a run."""

    #: Indent of the JSON file.
    INDENT: ClassVar[int | None] = None
    #: Keys of the identity that files of former versions lack.
    ADDED: ClassVar[frozenset[str]] = frozenset()

    @abc.abstractmethod
    def parts(self) -> tuple[str, ...]:
        """Readable names of its folders and file, in any characters. They need not tell cells apart."""

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that the results depend on, as JSON values."""

    @abc.abstractmethod
    def names(self) -> dict[str, Any]:
        """What tables call the cell, as JSON values: `policy`, `keep`, `positions` and `task` among them."""

    @property
    def title(self) -> str | None:
        """What `run` reports before it evaluates the cell; None: nothing."""
        return None

    def path(self, out: Path) -> Path:
        """The file of its results, below the run's folder."""
        *folders, name = map(safe_name, self.parts())
        return out.joinpath(CELLS, *folders, f"{name}-{digest(self.identity())}.json")

    def is_of(self, results: dict[str, Any]) -> bool:
        """Whether results were written under this cell's identity."""
        stored = results["identity"]
        expected = {key: value for key, value in self.identity().items() if key in stored or key not in self.ADDED}
        return bool(stored == expected)

    def finished(self, out: Path) -> bool:
        """Whether a file with results of this identity exists."""
        return self._found(out) is not None

    def read(self, out: Path) -> dict[str, Any]:
        """The results on disk, with the identity that they were written under.

        Raises:
            FileNotFoundError: there are none.
        """
        results = self._found(out)
        if results is None:
            raise FileNotFoundError(f"no results at {self.path(out)}")
        return results

    def _found(self, out: Path) -> dict[str, Any] | None:
        results = read_cell(self.path(out))
        if results is not None and self.is_of(results):
            return results
        return next((results for _, results in cells_in(out, former=True) if self.is_of(results)), None)

    def write(self, out: Path, results: dict[str, Any]) -> None:
        """Write results, identity and names. The file appears under its name only when it is complete."""
        path = self.path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        head = {"identity": self.identity(), "names": self.names()}
        partial.write_text(json.dumps(head | results, indent=self.INDENT) + "\n")
        partial.replace(path)


def digest(identity: dict[str, Any]) -> str:
    """A short hash of JSON values."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def safe_name(text: str) -> str:
    """A text as the name of a file or folder on any system: other characters than letters, digits and `._+=@-` become
    `-`, and a long one is cut. Different texts may get the same name."""
    name = re.sub(r"[^A-Za-z0-9._+=@-]+", "-", text)[:_LONGEST].strip("-. ")
    reserved = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE)
    return f"_{name}" if reserved or not name else name


def read_cell(path: Path) -> dict[str, Any] | None:
    """The results in a file; None if it is not there, or is not a cell's."""
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    is_cell = isinstance(results, dict) and isinstance(results.get("identity"), dict)
    return results if is_cell else None


def cells_in(out: Path, former: bool = False) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Files and results of all finished cells in a folder, the oldest file first.

    Args:
        out: the folder of a run.
        former: only those of former versions, whose names have no hash.
    """
    files = [path for path in (out / CELLS).rglob("*.json") if not (former and _HASHED.search(path.name))]
    for path in sorted(files, key=lambda path: (path.stat().st_mtime_ns, path)):
        results = read_cell(path)
        if results is not None:
            yield path, results


def check_command(out: Path, command: str) -> None:
    """Check that the tables in a folder, if there are any, are those of the same command.

    Args:
        out: the folder of a run.
        command: `"bench"` or `"eval"`.

    Raises:
        CommandError: they are another's, and would be overwritten.
    """
    try:
        rows = json.loads((out / "results.json").read_text())["rows"]
        other = "eval" if "metric" in rows[0] else "bench"
    except (OSError, ValueError, LookupError, TypeError):
        return
    if other != command:
        raise CommandError(f"--out {out} has the results of `tokenprune {other}`; name another folder")


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
