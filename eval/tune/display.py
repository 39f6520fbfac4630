"""What tuning found, as tables, text and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich import box
from rich.table import Table

from ..curves import GRID, INK, MARKERS, MUTED, SERIES
from .metrics import METRICS
from .tuned import Tuned

#: Costs in words.
UNITS = {"time": "time to the first token", "flops": "FLOPs of the prefill"}


def table(tuned: Tuned) -> Table:
    """All settings that were tested, chain by chain; the chosen one is bold."""
    options = tuned.options
    found = Table(
        title=f"{METRICS[options.metric].what}, {tuned.tested} test prompts",
        caption=f"cost: {UNITS[options.cost]}, all tokens 100 %; interval: of one setting, {options.confidence:.0%}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
    )
    for name in ("", "tokens", "cost", "lost", "interval", "asked", "certified"):
        found.add_column(name, justify="right" if name else "left", no_wrap=bool(name), overflow="fold")
    for row in tuned.rows:
        found.add_row(
            row.setting,
            f"{row.visual_tokens:.0f}",
            f"{row.cost:.0%}",
            f"{row.risk:.1%}",
            f"{row.low:.1%} to {row.high:.1%}",
            str(row.n),
            "yes" if row.certified else "no",
            style="bold" if row == tuned.chosen else None,
        )
    return found


def verdict(tuned: Tuned) -> Iterator[str]:
    """What was found, in sentences."""
    options, chosen = tuned.options, tuned.chosen
    within = f"{options.tolerance:.3g} at {options.confidence:.3g} confidence"
    if chosen is None:
        yield f"Nothing can be certified: no setting was shown to have a risk of at most {within}."
        yield _missing(tuned)
        return
    cost = tuned.measured["cost"]
    full, pruned = cost["full"], cost["pruned"]
    yield (
        f"{chosen.setting} holds {pruned['visual_tokens']:.0f} of {full['visual_tokens']:.0f} visual tokens, and costs "
        f"{chosen.cost:.0%} of the full model's {UNITS[options.cost]}."
    )
    yield f"{tuned.measured['certificate']['promise']} On the {chosen.n} test prompts the mean was {chosen.risk:.3g}."
    accuracy = tuned.measured.get("accuracy")
    if accuracy:
        yield (
            f"Right answers, on the {accuracy['labelled_prompts']} test prompts where they are known: "
            f"{accuracy['full']:.1%} with all tokens, {accuracy['pruned']:.1%} pruned."
        )
    if chosen.cost >= 1:
        yield "It is no cheaper than the full model here."


def _missing(tuned: Tuned) -> str:
    """What it would take."""
    if not tuned.complete and not any(row.n for row in tuned.rows):
        return "Time ran out before anything was tested: give more minutes."
    if tuned.prompts_needed is None:
        return "The safest settings already lose more than that: more prompts would not help, a larger tolerance would."
    more = max(0, tuned.prompts_needed - tuned.prompts)
    return f"If the safest setting goes on losing as it did, about {more} more prompts would certify it."


def draw(path: Path, rows: Sequence[Mapping[str, Any]], tolerance: float, unit: str) -> None:
    """Draw risk against cost: a line per chain, certified settings filled.

    Args:
        path: of the picture.
        rows: as a recipe's `tested` has them.
        tolerance: that was asked for.
        unit: of the cost, `"time"` or `"flops"`.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    plot(figure, rows, tolerance, unit)
    figure.savefig(path, dpi=110)


def plot(figure: Figure, rows: Sequence[Mapping[str, Any]], tolerance: float, unit: str) -> None:
    """The same into an empty figure."""
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for i, chain in enumerate(dict.fromkeys(row["chain"] for row in rows)):
        of_chain = [row for row in rows if row["chain"] == chain]
        colour, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
        costs, risks = [row["cost"] for row in of_chain], [row["risk"] for row in of_chain]
        axes.plot(costs, risks, color=colour, linewidth=1, label=chain)
        for row in of_chain:
            axes.vlines(row["cost"], row["low"], row["high"], color=colour, linewidth=1, alpha=0.6)
            face = colour if row["certified"] else "none"
            axes.plot(row["cost"], row["risk"], marker=marker, color=colour, markerfacecolor=face, markersize=7)
    certified = [row for row in rows if row["certified"]]
    if certified:
        chosen = min(certified, key=lambda row: row["cost"])
        axes.annotate(
            chosen["setting"],
            (chosen["cost"], chosen["risk"]),
            xytext=(6, 10),
            textcoords="offset points",
            color=INK,
            fontweight="bold",
        )
    axes.axhline(tolerance, color=MUTED, linestyle="--", linewidth=1)
    axes.annotate(
        "tolerance",
        (0, tolerance),
        xycoords=("axes fraction", "data"),
        xytext=(4, 4),
        textcoords="offset points",
        color=MUTED,
    )
    axes.set_xlabel(f"{UNITS[unit]}, all tokens 100 %")
    axes.set_ylabel("lost on the test prompts; filled: certified")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
