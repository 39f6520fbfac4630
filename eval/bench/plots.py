"""Figures of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from ..setting import format_keep
from .run import BASELINES
from .tasks import ALL


def curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw exact match over all tasks against visual tokens, with 95 % intervals.

    A colour and a marker per policy, baselines in grey, in the order of their exact match at the fewest tokens. Lines
    are solid for original positions and dotted for compact ones.

    Args:
        rows: of `report.rows`.
        path: of the image.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    ax = figure.subplots()
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["task"] == ALL:
            lines.setdefault((row["policy"], row["positions"]), []).append(row)
    colours: dict[str, Any] = dict(zip(BASELINES, ("0.7", "0.5", "0.25"), strict=True))
    best = lambda item: -min(item[1], key=lambda row: row["visual_tokens"])["exact_match"]
    for (name, positions), line in sorted(lines.items(), key=best):
        points = sorted(line, key=lambda row: row["visual_tokens"])
        value, low, high = (np.array([100 * row[k] for row in points]) for k in ("exact_match", "low", "high"))
        if name == "full":
            ax.axhline(value[0], color="black", linewidth=1, label="full")
            continue
        colours.setdefault(name, colormaps["tab20"]((len(colours) - len(BASELINES)) % 20))
        ax.errorbar(
            [row["visual_tokens"] for row in points],
            value,
            yerr=[value - low, high - value],
            marker="os^vDPX*"[list(colours).index(name) % 8],
            markersize=5,
            capsize=2,
            linestyle=":" if positions == "compact" else "-",
            color=colours[name],
            label=f"{name}, compact" if positions == "compact" else name,
        )
    ax.set_xlabel("visual tokens per question, mean over decoder layers")
    ax.set_ylabel("exact match, %")
    ax.set_title(f"All tasks ({rows[0]['model']})")
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=90)


def tasks(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw policies by tasks at every keep ratio, exact match as colour and number.

    Args:
        rows: of `report.rows`.
        path: of the image.
    """
    names = list(dict.fromkeys(row["task"] for row in rows))
    blocks: dict[tuple[Any, ...], dict[str, dict[str, float]]] = {}
    full = {row["task"]: 100 * row["exact_match"] for row in rows if row["policy"] == "full"}
    for row in rows:
        if row["policy"] != "full":
            block = blocks.setdefault((format_keep(row["keep"]), row["positions"]), {"full": full})
            block.setdefault(row["policy"], {})[row["task"]] = 100 * row["exact_match"]
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
