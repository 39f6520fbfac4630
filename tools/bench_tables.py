"""Makes the tables of docs/bench.md from the committed results."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tokenprune.eval import minivlm
from tokenprune.eval.bench.report import gain

_FOLDER = Path(__file__).parents[1] / "docs" / "bench"
NAMES = [name for name in minivlm.NAMES if (_FOLDER / name).is_dir()]


def rows(model: str, file: str = "results") -> list[dict[str, str]]:
    """The rows of a results file that are means over all tasks."""
    with (_FOLDER / model / f"{file}.csv").open() as lines:
        return [row for row in csv.DictReader(lines) if row["task"] == "all"]


def budget(keep: float) -> str:
    """One row per policy at a budget, the best mean over the models first; empty cells if it cannot prune a model."""
    found = {(m, r["policy"]): r for m in NAMES for r in rows(m) if float(r["keep"]) == keep and r["policy"] != "full"}
    order = lambda policy: (-sum(float(found[m, policy]["exact_match"]) for m in NAMES if (m, policy) in found), policy)
    policies = sorted({policy for _, policy in found}, key=order)

    def cells(row: dict[str, str] | None) -> str:
        if row is None:
            return " |  | "
        over = gain({k: float(v) for k, v in row.items() if k.startswith("vs_random") and v}, "random")
        return f"{float(row['visual_tokens']):.0f} | **{100 * float(row['exact_match']):.1f}** | {over}"

    heads = " | ".join(f"{model}: kept | all | over random" for model in NAMES)
    lines = [f"| `{p}` | {' | '.join(cells(found.get((m, p))) for m in NAMES)} |" for p in policies]
    return "\n".join([f"| | {heads} |", "|---|" + "--:|" * 3 * len(NAMES), *lines])


def positions(model: str) -> str:
    """One row per policy with positions kept and renumbered, the best first."""
    found = {(r["policy"], r["positions"]): 100 * float(r["exact_match"]) for r in rows(model, "positions")}
    policies = sorted((p for p, kind in found if kind == "compact"), key=lambda p: (-found[p, "original"], p))
    line = lambda p, kept, renumbered: f"| `{p}` | {kept:.1f} | {renumbered:.1f} | {renumbered - kept:+.1f} |"
    lines = [line(p, found[p, "original"], found[p, "compact"]) for p in policies]
    return "\n".join([f"| | {model}: original | compact | difference |", "|---|--:|--:|--:|", *lines])


#: Tables by marker.
TABLES: dict[str, Callable[[], str]] = {
    "bench 0.25": lambda: budget(0.25),
    "bench 0.1": lambda: budget(0.1),
    **{f"positions {model}": partial(positions, model) for model in NAMES},
}
