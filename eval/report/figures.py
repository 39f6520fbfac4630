"""Figures of the report, small enough for a phone to show them at full size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..profile.report import draw_phases, draw_savings
from ..setting import FULL

_SIZE = (4.6, 3.4)  # inches


def _figure(height: float = _SIZE[1]) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _ratio(row: dict[str, Any]) -> float | None:
    """Share of visual tokens that are kept; None if it is unknown."""
    if row["policy"] == FULL:
        return 1.0
    return row["kept_tokens"] / row["visual_tokens"] if row["visual_tokens"] else None


def accuracy_by_keep(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, Figure]]:
    """Per task (task, metric, figure): a curve for each policy, and a horizontal line for the full model."""
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        figure, axes = _figure()
        for policy in dict.fromkeys(row["policy"] for row in of_task):
            points = sorted((_ratio(r), r["value"]) for r in of_task if r["policy"] == policy and _ratio(r) is not None)
            if policy == FULL:
                axes.axhline(points[0][1], color="0.4", linestyle="--", linewidth=1, label="full")
            elif points:
                axes.plot(*np.array(points).T, marker="o", label=policy)
        axes.set(xlabel="share of visual tokens kept", ylabel=of_task[0]["metric"], title=task, xlim=(0, None))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(fontsize="small")
        yield task, of_task[0]["metric"], figure


def pareto(rows: Sequence[dict[str, Any]]) -> Figure | None:
    """Accuracy by speed, both relative to the full model, accuracy averaged over tasks; None without a full model."""
    points = {}
    for setting in dict.fromkeys((row["policy"], row["keep"]) for row in rows):
        of_setting = [r for r in rows if (r["policy"], r["keep"]) == setting and not r["group"]]
        shares = [r["relative"] for r in of_setting if r.get("relative") is not None]
        speeds = [r["samples_per_second"] for r in of_setting if r["samples_per_second"]]
        if shares and speeds:
            points[setting] = (np.mean(speeds), np.mean(shares))
    if (FULL, None) not in points or len(points) < 2:
        return None
    base = points[FULL, None][0]
    figure, axes = _figure()
    for policy in dict.fromkeys(name for name, _ in points):
        positions = np.array([(x / base, y) for (name, _), (x, y) in points.items() if name == policy])
        axes.plot(*positions.T, "o", label=policy, color="0.3" if policy == FULL else None)
    for (name, keep), (x, y) in points.items():
        if name != FULL:
            axes.annotate(keep, (x / base, y), textcoords="offset points", xytext=(4, 3), fontsize=8)
    ordered = sorted(((x / base, y) for x, y in points.values()), reverse=True)
    front = [p for i, p in enumerate(ordered) if all(p[1] > q[1] for q in ordered[:i])]
    axes.plot(*np.array(front).T, color="0.6", linewidth=1, zorder=0)
    axes.set(xlabel="samples per second, × full", ylabel="mean accuracy, of full", title="accuracy against speed")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(fontsize="small")
    return figure


def phases(rows: Sequence[dict[str, Any]], new_tokens: int) -> Figure:
    """Latency of a profile's rows by phase."""
    figure, axes = _figure(0.32 * len(rows) + 1.6)
    draw_phases(axes, rows, new_tokens, columns=2)
    return figure


def savings(rows: Sequence[dict[str, Any]]) -> Figure:
    """Savings of a profile's rows, by the clock against FLOPs."""
    figure, axes = _figure()
    draw_savings(axes, rows)
    return figure
