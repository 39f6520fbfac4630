"""Cells of a grid on disk: each there whole or not at all, and known by all it depends on."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def finished(path: Path, identity: dict[str, Any]) -> bool:
    """Whether this very cell has been run: under another limit, say, it has not."""
    return path.exists() and json.loads(path.read_text())["identity"] == identity


def write(path: Path, results: dict[str, Any], indent: int | None = None) -> None:
    """Write a cell's results, its `identity` among them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=indent) + "\n")
    partial.replace(path)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Tidy rows, with every column that some row has."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
