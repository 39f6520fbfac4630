"""Draws the pictures of docs/bench again from the committed results: `python -m tools.bench_pictures`."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenprune.eval.bench import plots

_FOLDER = Path(__file__).parents[1] / "docs" / "bench"
_DRAWN: dict[str, Callable[[list[dict[str, Any]], Path], None]] = {
    "curves.png": plots.curves,
    "tasks.png": plots.tasks,
    "flops.png": functools.partial(plots.curves, cost="flops"),
}


def main() -> None:
    """Draw the pictures that are there; the same results give the same bytes."""
    for path in sorted(_FOLDER.glob("*/results.json")):
        rows = json.loads(path.read_text())["rows"]
        for name, draw in _DRAWN.items():
            if (path.parent / name).exists():
                draw(rows, path.parent / name)


if __name__ == "__main__":
    main()
