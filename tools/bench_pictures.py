"""Draws the pictures of docs/bench from the committed results: `python -m tools.bench_pictures`."""

import json
from pathlib import Path

from tokenprune.eval.bench import plots

_FOLDER = Path(__file__).parents[1] / "docs" / "bench"


def main() -> None:
    for path in sorted(_FOLDER.glob("*/results.json")):
        rows = json.loads(path.read_text())["rows"]
        plots.curves(rows, path.parent / "curves.png")
        plots.tasks(rows, path.parent / "tasks.png")


if __name__ == "__main__":
    main()
