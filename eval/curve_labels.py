"""Names at the ends of curves, which do not overlap."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

_AWAY = 9  # distance of a name from the end of its curve, points
_GAP = 1.12  # distance of names, in heights of their text
_CURVES = 0.4  # least share of the width that is for curves; names that have no room are written over them
_LEADER = "#a9b2bd"  # colour of the line from a name that was moved to its curve


@dataclass(frozen=True)
class Name:
    """A name to be written.

    Attributes:
        text: the name.
        ends: (x, y) of the curve's first and last point.
        colour: of the text.
        bold: whether it is bold and larger.
    """

    text: str
    ends: tuple[tuple[float, float], tuple[float, float]]
    colour: str
    bold: bool


def label(axes: Any, names: Sequence[Name], limits: tuple[float, float]) -> None:
    """Write names beside curves over a logarithmic horizontal axis, which is limited so that they have room.

    The names of curves that begin at the lowest x stand in a column left of them, others at the right end of theirs.
    Those that would overlap are moved up or down, with a thin line to the curve. The figure must have been laid out.

    Args:
        axes: of matplotlib.
        names: of the curves.
        limits: lowest and highest x of all curves.
    """
    is_left = [name.ends[0][0] <= 1.2 * limits[0] and name.ends[0][0] < limits[1] for name in names]
    texts = [_text(axes, name, left) for name, left in zip(names, is_left, strict=True)]
    written = list(zip(names, texts, is_left, strict=True))
    _make_room(axes, written, limits)
    pixel, area = axes.figure.dpi / 72, axes.get_window_extent()
    for left in (True, False):
        side = [(name, text) for name, text, is_at_left in written if is_at_left is left]
        side.sort(key=lambda each: each[0].ends[not left][1])
        points = [name.ends[not left] for name, _ in side]
        ends = [axes.transData.transform(point) for point in points]
        lowest = min([x for x, _ in ends], default=0.0)
        sizes = [_size(text) for _, text in side]
        starts = [min(x, area.x1 - width) for (x, _), (width, _) in zip(ends, sizes, strict=True)]
        moved = _apart(
            [(0.0, 1.0) if left else (x, x + width) for x, (width, _) in zip(starts, sizes, strict=True)],
            [y for _, y in ends],
            [height * _GAP for _, height in sizes],
            (area.y0, area.y1 + 8 * pixel),
        )
        for (_, text), point, (x, y), to in zip(side, points, ends, moved, strict=True):
            text.xy = point
            free = (area.x1 - x - _size(text)[0]) / pixel
            text.xyann = (-_AWAY + (lowest - x) / pixel if left else min(_AWAY, free), (to - y) / pixel)
            text.arrow_patch.set_visible(abs(to - y) > 3 * pixel or (left and x - lowest > _AWAY * pixel))


def _text(axes: Any, name: Name, left: bool) -> Any:
    text = axes.annotate(
        name.text,
        name.ends[0],
        xytext=(0, 0),
        textcoords="offset points",
        va="center",
        ha="right" if left else "left",
        color=name.colour,
        fontsize=9 if name.bold else 7.5,
        fontweight="bold" if name.bold else "normal",
        zorder=6,
        annotation_clip=False,
        arrowprops={"arrowstyle": "-", "color": _LEADER, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
    )
    text.set_in_layout(False)
    return text


def _size(text: Any) -> tuple[float, float]:
    """Width and height of a name in pixels, without its line to the curve."""
    box = Text.get_window_extent(text)
    return float(box.width), float(box.height)


def _make_room(axes: Any, written: Sequence[tuple[Name, Any, bool]], limits: tuple[float, float]) -> None:
    """Limit the horizontal axis such that all points and, as far as possible, names are inside; place its ticks."""
    first, last = limits
    width, gap = axes.get_window_extent().width, (_AWAY + 3) * axes.figure.dpi / 72
    left = max([gap, *(_size(text)[0] + gap for _, text, is_left in written if is_left)])
    right = [(last, gap), *((name.ends[1][0], _size(text)[0] + gap) for name, text, is_left in written if not is_left)]
    room = lambda taken: max(width - left - taken, _CURVES * width)
    left = min(left, (1 - _CURVES) * width)
    decades = max([0.15 / width, *(np.log10(x / first) / room(taken) for x, taken in right)])
    axes.set_xlim(first / 10 ** (left * decades), first * 10 ** ((width - left) * decades))
    shown = (max(axes.get_xlim()[0], first / 1.3), min(axes.get_xlim()[1], last * 1.3))
    axes.xaxis.set_major_locator(FixedLocator(_ticks(shown, decades * 24 * axes.figure.dpi / 72)))


def _ticks(limits: tuple[float, float], apart: float) -> list[float]:
    """Round numbers within the limits that are at least so many decades apart."""
    ticks: list[float] = []
    for marks in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [mark * 10.0**power for power in range(-1, 7) for mark in marks]
        ticks = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
        if all(np.log10(above / below) >= apart for below, above in itertools.pairwise(ticks)):
            break
    return ticks


def halo(figure: Figure) -> None:
    """Give names a white outline, so that they can be read above lines. SVG has its own way in a style sheet."""
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
