"""Figures of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from ..curve_labels import halo
from ..curves import Curve, Plot, Point, draw
from ..setting import FULL, format_keep
from .run import BASELINES
from .tasks import ALL

#: By what is on the horizontal axis, a row's key: a factor and what the axis says.
_COSTS = {
    "visual_tokens": (1.0, Plot.cost),
    "flops": (1e-6, ("MFLOP per question up to the first token,", "vision encoder and prefill")),
}


def plot(rows: Sequence[dict[str, Any]], cost: Literal["visual_tokens", "flops"] = "visual_tokens") -> Plot:
    """Exact match over all tasks against visual tokens or FLOPs, a curve per policy and positions.

    Args:
        rows: of `report.rows`, of one model.
        cost: what is on the horizontal axis. Rows without it are left out.
    """
    lines: dict[tuple[str, str], list[Point]] = {}
    factor, axis = _COSTS[cost]
    for row in rows:
        if row["task"] == ALL and row.get(cost) is not None:
            point = Point(factor * row[cost], row["exact_match"], row["low"], row["high"])
            lines.setdefault((row["policy"], row["positions"]), []).append(point)
    full = next((points[0] for (name, _), points in lines.items() if name == FULL), None)
    curves = [
        Curve(name, tuple(sorted(points)), dotted=positions == "compact")
        for (name, positions), points in lines.items()
        if name != FULL
    ]
    return Plot(curves, BASELINES, full, cost=axis)


def curves(
    rows: Sequence[dict[str, Any]], path: Path, cost: Literal["visual_tokens", "flops"] = "visual_tokens"
) -> None:
    """Draw exact match over all tasks against visual tokens or FLOPs, with 95 % intervals.

    The six best policies have colours, baselines are grey and the others faint. Names stand at the ends of the lines.
    Lines of compact positions are dotted.

    Args:
        rows: of `report.rows`.
        path: of the image.
        cost: what is on the horizontal axis.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    draw(figure, plot(rows, cost))
    halo(figure)
    figure.axes[0].set_title(f"All tasks ({rows[0]['model']}, {rows[0]['n']} questions per task)", loc="left")
    figure.savefig(path, dpi=100)


def tasks(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw policies by tasks at every keep ratio, exact match as colour and number.

    Policies are ordered by the last task that there are figures of, which is all of them together.

    Args:
        rows: of `report.rows`, of one model.
        path: of the image.
    """
    names = list(dict.fromkeys(row["task"] for row in rows))
    blocks: dict[tuple[Any, ...], dict[str, dict[str, float]]] = {}
    full = {row["task"]: 100 * row["exact_match"] for row in rows if row["policy"] == FULL}
    for row in rows:
        if row["policy"] != FULL:
            block = blocks.setdefault((format_keep(row["keep"]), row["positions"]), {FULL: full})
            block.setdefault(row["policy"], {})[row["task"]] = 100 * row["exact_match"]
    blocks = blocks or {("1.0", "original"): {FULL: full}}
    heights = [len(block) for block in blocks.values()]
    figure = Figure(
        figsize=(1.5 + 0.8 * len(names), 0.6 * len(blocks) + 0.36 * sum(heights) + 0.6), layout="constrained"
    )
    axes = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, ((keep, positions), scores) in zip(axes, blocks.items(), strict=True):
        block = dict(sorted(scores.items(), key=lambda item: -item[1].get(names[-1], -1)))
        values = np.array([[of_policy.get(name, np.nan) for name in names] for of_policy in block.values()])
        ax.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "white" if value < 60 else "black"
                ax.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
        ax.set_yticks(range(len(block)), list(block), fontsize=9)
        ax.set_xticks(range(len(names)), names, fontsize=9)
        ax.set_title(f"keep {keep}, {positions} positions: exact match, %", fontsize=10, loc="left")
    figure.savefig(path, dpi=90)
