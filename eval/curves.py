"""Curves of accuracy against cost, a line per policy with its name at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

#: Colours of text, of secondary text and baselines, of the faint lines and of the grid.
INK, MUTED, FAINT, GRID = "#1f2328", "#6b7280", "#a9b2bd", "#e4e7eb"
#: Colours of the highlighted lines. They can be told apart with colour blindness, and have a marker each.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa3f94", "#a67c00", "#3f8fd0")
MARKERS = "osD^vP"
#: Line styles of baselines.
_DASHES = ("-", "--", "-.")
_GAP = 1.12  # distance of labels, in heights of their text


class Point(NamedTuple):
    """One setting.

    Attributes:
        cost: visual tokens, a mean over decoder layers.
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
        label_all: whether every curve gets a label, or only highlighted ones and baselines.
    """

    curves: Sequence[Curve]
    baselines: Sequence[str] = ()
    full: Point | None = None
    measure: str = "exact match"
    label_all: bool = True


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
    highlighted = [c.name for c in best([c for c in plot.curves if c.name not in plot.baselines])]
    labels = []
    if not plot.curves:
        axes.text(0.5, 0.5, "no pruned setting", transform=axes.transAxes, ha="center")
        return
    for i, curve in enumerate(plot.curves):
        style = _style(curve, highlighted, plot.baselines)
        named = plot.label_all or style["zorder"] > 2
        _line(axes, curve, style, f"curve-{i}")
        if named:
            labels.append((curve, style))
    if plot.full is not None:
        axes.axhline(plot.full.value, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.plot(plot.full.cost, plot.full.value, marker="*", markersize=11, color=INK, clip_on=False, gid="full")
    costs = _limits(axes, plot)
    axes.set_xlabel("visual tokens per question, mean over decoder layers")
    axes.set_ylabel(plot.measure)
    figure.draw_without_rendering()  # lays out, so that sizes in pixels are known
    _label(axes, labels, plot, costs)


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
    axes.set_xlim(left / 1.05, right * 1.05)
    marks = (1, 1.5, 2, 3, 5, 7) if right < 20 * left else (1, 2, 5)
    ticks = [m * 10**e for e in range(-1, 7) for m in marks]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if left / 1.05 <= tick <= right * 1.05]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    lowest, highest = min(p.low for p in points), max([1.0, *(p.value for p in points)])
    floor = float(np.floor(10 * lowest) / 10)
    axes.set_ylim(floor if floor > 0.3 else 0.0, highest)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return left, right


@dataclass
class _Label:
    """A name at an end of a line."""

    text: Any
    point: Point
    left: bool

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the text in pixels, without the thin line to the end of the curve."""
        box = Text.get_window_extent(self.text)
        return float(box.width), float(box.height)


def _label(axes: Any, labels: Sequence[tuple[Curve, dict[str, Any]]], plot: Plot, costs: tuple[float, float]) -> None:
    """Write names at ends of lines: at the cheap end of lines that begin at the lowest cost, at the dear end of others.

    Names that would overlap are moved up or down, with a thin line to the end.
    """
    written = []
    for curve, style in labels:
        strong = style["zorder"] == 4
        name = f"{curve.name}, compact" if curve.dotted else curve.name
        left = curve.points[0].cost <= 1.2 * costs[0]
        text = _text(axes, name, style["color"] if strong else MUTED, 9 if strong else 7.5, left)
        written.append(_Label(text, curve.points[0 if left else -1], left))
    if plot.full is not None:
        written.append(_Label(_text(axes, "full", INK, 9, False), plot.full, False))
    pixel, area = axes.figure.dpi / 72, axes.get_window_extent()
    _make_room(axes, written, costs, 12 * pixel)
    for left in (True, False):
        side = sorted((each for each in written if each.left is left), key=lambda each: each.point.value)
        ends = [axes.transData.transform((each.point.cost, each.point.value)) for each in side]
        lowest = min([x for x, _ in ends], default=0.0)
        moved = _apart(
            [(0.0, 1.0) if left else (x, x + each.size[0]) for (x, _), each in zip(ends, side, strict=True)],
            [y for _, y in ends],
            [each.size[1] * _GAP for each in side],
            (area.y0, area.y1 + 8 * pixel),
        )
        for each, (x, y), to in zip(side, ends, moved, strict=True):
            aside = -9 + (lowest - x) / pixel if left else 9  # names at the cheap end stand in one column
            each.text.xyann = (aside, (to - y) / pixel)
            each.text.xy = (each.point.cost, each.point.value)
            each.text.arrow_patch.set_visible(abs(to - y) > 3 * pixel or (left and x - lowest > 9 * pixel))


def _make_room(axes: Any, labels: Sequence[_Label], costs: tuple[float, float], gap: float) -> None:
    """Widen the axis of costs by what names at its two ends take; `gap` is their distance from the points in pixels."""
    width = axes.get_window_extent().width
    at_right = [each.size[0] + gap for each in labels if not each.left and each.point.cost > 0.8 * costs[1]]
    left = max([gap, *(each.size[0] + gap for each in labels if each.left)])
    right = max([gap, *at_right])
    decades = np.log10(costs[1] / costs[0]) or 0.3  # a single cost
    per_pixel = decades / max(width - left - right, width / 4)
    axes.set_xlim(costs[0] / 10 ** (left * per_pixel), costs[1] * 10 ** (right * per_pixel))


def _text(axes: Any, name: str, colour: str, size: float, left: bool) -> Any:
    text = axes.annotate(
        name,
        (1, 0.5),
        xytext=(0, 0),
        textcoords="offset points",
        va="center",
        ha="right" if left else "left",
        color=colour,
        fontsize=size,
        fontweight="bold" if size > 8 else "normal",
        zorder=6,
        annotation_clip=False,
        arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
    )
    text.set_in_layout(False)
    return text


def halo(figure: Figure) -> None:
    """Give labels a white outline, so that they can be read above lines. SVG has its own way in a style sheet."""
    for axes in figure.axes:
        for text in axes.texts:
            text.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="white", alpha=0.85)])


def _apart(
    spans: Sequence[tuple[float, float]],
    wanted: Sequence[float],
    heights: Sequence[float],
    limits: tuple[float, float],
) -> list[float]:
    """Vertical centers of labels such that those whose horizontal `spans` overlap do not overlap vertically."""
    moved = list(wanted)
    rest = sorted(range(len(spans)), key=lambda i: spans[i])
    while rest:
        group = [rest.pop(0)]
        end = spans[group[0]][1]
        while rest and spans[rest[0]][0] < end:
            end = max(end, spans[rest[0]][1])
            group.append(rest.pop(0))
        group.sort(key=lambda i: wanted[i])
        placed = spread([wanted[i] for i in group], [heights[i] for i in group], limits)
        for i, value in zip(group, placed, strict=True):
            moved[i] = value
    return moved


def spread(wanted: Sequence[float], heights: Sequence[float], limits: tuple[float, float]) -> list[float]:
    """Centers of intervals of the given heights that do not overlap, nearest to the wanted ones by least squares.

    Args:
        wanted: ascending centers.
        heights: of each.
        limits: where all of them have to be, as far as they fit.
    """
    starts = np.concatenate([[0.0], np.cumsum(heights)[:-1]])
    shifted = np.asarray(wanted) - starts - np.asarray(heights) / 2
    blocks: list[list[float]] = []  # mean and size: pool neighbours that are out of order
    for value in shifted:
        blocks.append([float(value), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size), blocks[-1][1] + size]
    free = np.repeat([mean for mean, _ in blocks], [int(size) for _, size in blocks])
    free = np.clip(free, limits[0], max(limits[0], limits[1] - float(np.sum(heights))))
    return [float(each) for each in free + starts + np.asarray(heights) / 2]
