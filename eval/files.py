"""Results files: CSV, JSON and tables in Markdown."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV. A column for every key that any row has; missing values are empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, content: Any) -> None:
    """A JSON file with an indent of one; folders that are missing are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def markdown_table(heads: Sequence[str], align: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table.

    Args:
        heads: titles of the columns; may be empty.
        align: per column `l` (left) or `r` (right).
        rows: cells of each row.
    """
    return [
        f"|{'|'.join(f' {head} ' if head else ' ' for head in heads)}|",
        f"|{'|'.join({'l': '---', 'r': '--:'}[side] for side in align)}|",
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]
