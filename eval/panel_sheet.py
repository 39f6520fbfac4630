"""An image file with the panels of several pictures, and a legend."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .panels import LegendPart, Panel, legend
from .pictures import TALLEST

_COLUMNS = 6  # most panels beside each other
_WIDTH = 3.2  # of a panel, inches
_LINE = 0.19  # height of a line of text, inches
_LETTERS = 42  # in a line below or above a panel
_RIGHT, _WRONG = "#1a7f37", "#c62828"


def draw(path: Path, rows: Sequence[tuple[str, Sequence[Panel]]]) -> None:
    """Draw panels into an image whose format follows from the path's suffix.

    Above each block stands the whole question, above a panel the setting and how many tokens are kept, below it the
    answer, marked as right or wrong where that is known. More than six panels are wrapped.

    Args:
        path: of the image.
        rows: the question and the panels of each block.
    """
    from matplotlib.figure import Figure

    columns = max(_columns(len(panels)) for _, panels in rows)
    heights = [_heights(question, panels, columns) for question, panels in rows]
    width = _WIDTH * max(columns, 2)
    parts = legend([panel for _, panels in rows for panel in panels])
    figure = Figure(figsize=(width, sum(sum(each) for each in heights) + 0.5), layout="constrained")
    blocks = figure.subfigures(len(rows) + 1, 1, height_ratios=[*(sum(each) for each in heights), 0.5], squeeze=False)
    for block, (question, panels), height in zip(blocks[:, 0], rows, heights, strict=False):
        block.suptitle(_headline(question, panels, columns), x=0.01, ha="left", fontsize=12, fontweight="bold")
        axes = block.subplots(len(height) - 1, columns, squeeze=False, height_ratios=height[1:])
        for ax in axes.flat:
            ax.axis("off")
        for ax, panel in zip(axes.flat, panels, strict=False):
            _panel(ax, panel)
    _legend(blocks[-1, 0], parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _columns(n: int) -> int:
    """How many of `n` panels stand beside each other, so that all rows are about equally long."""
    return math.ceil(n / math.ceil(n / _COLUMNS))


def _headline(question: str, panels: Sequence[Panel], columns: int) -> str:
    expected = panels[0].expected
    text = question if expected is None else f"{question}   (right answer: {expected})"
    return "\n".join(textwrap.wrap(text, 30 * max(columns, 2)))


def _heights(question: str, panels: Sequence[Panel], columns: int) -> list[float]:
    """Inches of a block's headline and of each row of its panels."""
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    pictures = [min(TALLEST, max(p.picture.shape[0] / p.picture.shape[1] for p in row)) for row in rows]
    lines = [max(len(_above(p)) + len(_below(p)) for p in row) for row in rows]
    headline = 0.24 * (1 + _headline(question, panels, columns).count("\n")) + 0.1
    return [headline, *((_WIDTH * ratio + _LINE * (n + 1) for ratio, n in zip(pictures, lines, strict=True)))]


def _above(panel: Panel) -> list[str]:
    return [*textwrap.wrap(panel.title, _LETTERS), *textwrap.wrap(panel.kept, _LETTERS)]


def _below(panel: Panel) -> list[str]:
    mark = "" if panel.correct is None else "✓ " if panel.correct else "✗ "
    return textwrap.wrap(mark + (panel.answer or "(no answer)"), _LETTERS)


def _panel(axes: Any, panel: Panel) -> None:
    axes.axis("on")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.imshow(panel.picture)
    axes.set_title("\n".join(_above(panel)), fontsize=10)
    colour = "black" if panel.correct is None else _RIGHT if panel.correct else _WRONG
    axes.set_xlabel("\n".join(_below(panel)), fontsize=10.5, color=colour)


def _legend(figure: Any, parts: Sequence[LegendPart]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for part in parts:
        if part.mark:
            colour = _RIGHT if part.style == "right" else _WRONG
            handles.append(Line2D([], [], linestyle="", marker=f"${part.mark}$", color=colour, label=part.text))
        else:
            edge = part.frame or "0.6"
            handles.append(
                Patch(facecolor=part.swatch, edgecolor=edge, linewidth=2 if part.frame else 0.8, label=part.text)
            )
    figure.legend(handles=handles, loc="center left", ncols=3, fontsize=10, frameon=False)
