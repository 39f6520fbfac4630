"""What `tokenprune tune` found, for the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CommandError
from ..files import read_json
from ..tune.display import UNITS
from .charts import Charts
from .tables import Cell, Head, Table, number, text

_FILE = "results.json"
_NEEDS = ("model", "metric", "tolerance", "confidence", "unit", "prompts", "tested_prompts", "verdict", "tested")
_HEADS = (
    Head("setting", False),
    Head("tokens", text="visual tokens per prompt, a mean over decoder layers"),
    Head("cost, %", text="of the full model's"),
    Head("lost, %", text="mean loss of the test prompts that were asked"),
    Head("interval", text="for the risk of this setting alone"),
    Head("asked", text="test prompts; fewer where it was clear that the setting would not pass"),
    Head("certified", False),
)


def read(path: Path) -> dict[str, Any]:
    """The results in a folder of `tokenprune tune --work`, or in its `results.json`.

    Raises:
        CommandError: there is no such file, or it has something else.
    """
    file = path / _FILE if path.is_dir() else path
    content = read_json(file, f"--tune {path}: no such file, or a folder without {_FILE}")
    missing = [name for name in _NEEDS if not isinstance(content, dict) or name not in content]
    if missing:
        raise CommandError(f"{file} is not what `tokenprune tune` writes into --work: it lacks {', '.join(missing)}")
    found: dict[str, Any] = content
    return found


def section(results: dict[str, Any], charts: Charts) -> dict[str, Any]:
    """Verdict, chart and table, as the template takes them."""
    rows, unit = results["tested"], results["unit"]
    note = (
        f"{results['prompts']} prompts, {results['tested_prompts']} of them tested; loss: {results['metric']}, at most "
        f"{results['tolerance']:g} with confidence {results['confidence']:g}; cost: {UNITS[unit]}"
    )
    return {
        "title": results["model"],
        "note": note,
        "verdict": results["verdict"],
        "chart": charts.risk(rows, results["tolerance"], unit) if rows else None,
        "table": _table(rows),
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    certified = [row["cost"] for row in rows if row["certified"]]
    chosen = [row["certified"] and row["cost"] == min(certified) for row in rows]
    cells = tuple(
        (
            text(row["setting"]),
            number(row["visual_tokens"], ".0f"),
            number(row["cost"], ".0f", 100),
            number(row["risk"], ".1f", 100),
            Cell(f"{100 * row['low']:.1f} to {100 * row['high']:.1f}", row["low"]),
            number(row["n"], ".0f"),
            text("yes" if row["certified"] else "no"),
        )
        for row in rows
    )
    return Table(_HEADS, cells, tuple(chosen))
