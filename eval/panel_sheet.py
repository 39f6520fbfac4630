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

    grids = [grid(panels) for _, panels in rows]
    columns = max(len(row) for each in grids for row in each)
    headlines = [_headline(question, panels[0].expected, columns) for question, panels in rows]
    heights = [[_headline_height(text), *map(_height, each)] for text, each in zip(headlines, grids, strict=True)]
    parts = legend([panel for _, panels in rows for panel in panels])
    size = (_WIDTH * max(columns, 2), sum(sum(each) for each in heights) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    blocks = figure.subfigures(len(rows) + 1, 1, height_ratios=[*(sum(each) for each in heights), 0.5], squeeze=False)
    for block, text, lines, height in zip(blocks[:, 0], headlines, grids, heights, strict=False):
        block.suptitle(text, x=0.01, ha="left", fontsize=12, fontweight="bold")
        axes = block.subplots(len(lines), columns, squeeze=False, height_ratios=height[1:])
        for ax in axes.flat:
            ax.axis("off")
        for line, panels in zip(axes, lines, strict=True):
            for ax, panel in zip(line, panels, strict=False):
                if panel is not None:
                    _panel(ax, panel)
    _legend(blocks[-1, 0], parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def grid(panels: Sequence[Panel]) -> list[list[Panel | None]]:
    """Rows of panels, at most six beside each other.

    With several keep ratios, each has a row, with the same policy in the same column and None below the full model, as
    long as it fits. Else the rows are about equally long.
    """
    keeps = list(dict.fromkeys(repr(panel.setting.keep) for panel in panels[1:]))
    of_keep = [[panel for panel in panels[1:] if repr(panel.setting.keep) == keep] for keep in keeps]
    if len(keeps) > 1 and len({len(each) for each in of_keep}) == 1 and len(of_keep[0]) < _COLUMNS:
        return [[panels[0] if i == 0 else None, *each] for i, each in enumerate(of_keep)]
    columns = math.ceil(len(panels) / math.ceil(len(panels) / _COLUMNS))
    return [list(panels[i : i + columns]) for i in range(0, len(panels), columns)]


def _headline(question: str, expected: str | None, columns: int) -> str:
    text = question if expected is None else f"{question}   (right answer: {expected})"
    return "\n".join(textwrap.wrap(text, 30 * max(columns, 2)))


def _headline_height(text: str) -> float:
    return 0.24 * (1 + text.count("\n")) + 0.1


def _height(row: Sequence[Panel | None]) -> float:
    """Inches of a row of panels."""
    panels = [panel for panel in row if panel is not None]
    ratio = min(TALLEST, max(panel.picture.shape[0] / panel.picture.shape[1] for panel in panels))
    lines = max(len(_above(panel)) + len(_below(panel)) for panel in panels)
    return _WIDTH * ratio + _LINE * (lines + 1)


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
