"""Curves of accuracy against cost, a line per policy with its name at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from .curve_labels import Name, label

#: Colours of text, of secondary text and baselines, of the faint lines and of the grid.
INK, MUTED, FAINT, GRID = "#1f2328", "#6b7280", "#a9b2bd", "#e4e7eb"
#: Colours of the highlighted lines. They can be told apart with colour blindness, and have a marker each.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa3f94", "#a67c00", "#3f8fd0")
MARKERS = "osD^vP"
#: Line styles of baselines.
_DASHES = ("-", "--", "-.")
_NARROW = 6.0  # inches; the label of a narrower plot's horizontal axis has two lines


class Point(NamedTuple):
    """One setting.

    Attributes:
        cost: visual tokens, a mean over decoder layers, or what else `Plot.cost` says.
        value: accuracy, a share.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    cost: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """The settings of one policy.

    Attributes:
        name: of the policy.
        points: one or more, by ascending cost.
        dotted: whether the line is dotted, to tell two curves of one policy apart.
    """

    name: str
    points: tuple[Point, ...]
    dotted: bool = False


@dataclass(frozen=True)
class Plot:
    """What a plot of curves shows.

    Attributes:
        curves: of all policies.
        baselines: names of those drawn in grey.
        full: the full model; None if it was not measured.
        measure: what the vertical axis says.
        cost: what the horizontal axis says, in two parts, which are two lines in a narrow plot.
        label_all: whether every curve gets a label, or only highlighted ones and baselines that are not dotted.
    """

    curves: Sequence[Curve]
    baselines: Sequence[str] = ()
    full: Point | None = None
    measure: str = "exact match"
    label_all: bool = True
    cost: tuple[str, str] = ("visual tokens per question,", "mean over decoder layers")


def best(curves: Sequence[Curve], count: int = len(SERIES)) -> list[Curve]:
    """The `count` best curves, the best first.

    A setting falls short of the most accurate setting that costs no more than it does; curves are ordered by what
    their settings fall short of in the mean.
    """
    points = [point for curve in curves for point in curve.points]

    def shortfall(curve: Curve) -> float:
        reached = [max(p.value for p in points if p.cost <= each.cost + 0.5) - each.value for each in curve.points]
        return float(np.mean(reached))

    return sorted(curves, key=shortfall)[:count]


def draw(figure: Figure, plot: Plot) -> None:
    """Draw curves into an empty figure with constrained layout: the best ones in colour, baselines grey, others faint.

    The cost is on a logarithmic axis. The vertical axis ends at 100 %, unless a value is above. Curves have the ids
    `curve-0`, `curve-1` and so on in SVG, in the order of `plot.curves`.
    """
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    highlighted = list(dict.fromkeys(c.name for c in best([c for c in plot.curves if c.name not in plot.baselines])))
    names = []
    if not plot.curves:
        axes.text(0.5, 0.5, "no pruned setting", transform=axes.transAxes, ha="center")
        return
    for i, curve in enumerate(plot.curves):
        style = _style(curve, highlighted, plot.baselines)
        named = plot.label_all or (style["zorder"] > 2 and not curve.dotted)
        _line(axes, curve, style, f"curve-{i}")
        if named:
            names.append(_name(curve, style))
    if plot.full is not None:
        axes.axhline(plot.full.value, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.plot(plot.full.cost, plot.full.value, marker="*", markersize=11, color=INK, clip_on=False, gid="full")
        at = plot.full[:2]
        names.append(Name("full", (at, at), INK, bold=True))
    costs = _limits(axes, plot)
    separator = "\n" if figure.get_figwidth() < _NARROW else " "
    axes.set_xlabel(separator.join(plot.cost))
    axes.set_ylabel(plot.measure)
    figure.draw_without_rendering()  # lays out, so that sizes in pixels are known
    label(axes, names, costs)


def _style(curve: Curve, highlighted: Sequence[str], baselines: Sequence[str]) -> dict[str, Any]:
    """Arguments of `axes.plot`; `zorder` is 2 for faint lines, 3 for baselines and 4 for highlighted ones."""
    dots = {"linestyle": ":"} if curve.dotted else {}
    if curve.name in baselines:
        i = list(baselines).index(curve.name)
        dashes = {"linestyle": _DASHES[i % len(_DASHES)], "marker": "o", "markersize": 3}
        return {"color": MUTED, "linewidth": 1.3, "zorder": 3, **dashes, **dots}
    if curve.name in highlighted:
        i = highlighted.index(curve.name)
        return {
            "color": SERIES[i % len(SERIES)],
            "linewidth": 2,
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 6,
            "zorder": 4,
            **dots,
        }
    return {"color": FAINT, "linewidth": 0.9, "marker": ".", "markersize": 3, "zorder": 2, **dots}


def _name(curve: Curve, style: dict[str, Any]) -> Name:
    strong = style["zorder"] == 4
    text = f"{curve.name}, compact" if curve.dotted else curve.name
    first, last = curve.points[0], curve.points[-1]
    return Name(text, (first[:2], last[:2]), style["color"] if strong else MUTED, strong)


def _line(axes: Any, curve: Curve, style: dict[str, Any], gid: str) -> None:
    cost, value, low, high = np.array(curve.points).T
    axes.plot(cost, value, **style, clip_on=False, gid=gid)
    if style["zorder"] > 2:
        axes.vlines(cost, low, high, color=style["color"], linewidth=1.2, zorder=style["zorder"])


def _limits(axes: Any, plot: Plot) -> tuple[float, float]:
    """A logarithmic axis of costs, and accuracy up to 100 %, by tens below. Returns the lowest and highest cost."""
    points = [point for curve in plot.curves for point in curve.points] + ([plot.full] if plot.full else [])
    costs = [point.cost for point in points]
    left, right = min(costs), max(costs)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    lowest, highest = min(p.low for p in points), max([1.0, *(p.value for p in points)])
    floor = float(np.floor(10 * lowest) / 10)
    axes.set_ylim(floor if floor > 0.3 else 0.0, highest)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return left, right
