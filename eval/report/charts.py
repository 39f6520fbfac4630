"""Charts of the report: inline SVG whose colours are those of the page, in a wide form and in one for phones."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .. import curves
from ..profile.report import draw_phases, draw_savings
from ..tune.display import plot as risk_plot
from .measured import Results

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
#: Colours in drawings by the variables of the style sheet that replace them.
_VARIABLES = {
    curves.INK: "--ink",
    curves.MUTED: "--muted",
    curves.FAINT: "--faint",
    curves.GRID: "--line",
    **{colour: f"--series-{i}" for i, colour in enumerate(curves.SERIES)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "tokenprune",  # the same drawing is the same file
    "text.color": curves.INK,
    "axes.edgecolor": curves.MUTED,
    "axes.labelcolor": curves.INK,
    "xtick.color": curves.MUTED,
    "ytick.color": curves.MUTED,
    "xtick.labelcolor": curves.INK,
    "ytick.labelcolor": curves.INK,
    "axes.prop_cycle": cycler(color=curves.SERIES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "font.size": 10,
}
#: Inches, (width, height).
Size = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        wide: SVG for wide screens.
        narrow: the same for narrow ones.
        text: describes it.
    """

    wide: str
    narrow: str
    text: str


class Charts:
    """Draws charts of one page; ids of one chart's elements do not occur in another."""

    def __init__(self) -> None:
        self._drawn = 0

    def accuracy(self, results: Results) -> Chart | None:
        """All settings: accuracy against the number of visual tokens. None without a setting that has both."""
        plot = results.plot(label_all=True)
        small = results.plot(label_all=False)
        if plot is None or small is None:
            return None
        titles = {f"curve-{i}": _described(curve) for i, curve in enumerate(plot.curves)}
        text = (
            f"{results.measure} against visual tokens, a line per policy: the best ones in colour, baselines grey, "
            "others faint; vertical lines are 95 % intervals"
        )
        if any(curve.dotted for curve in plot.curves):
            text += "; dotted: compact positions"
        return Chart(
            self._svg(lambda figure: curves.draw(figure, plot), (11.5, 6.4), text, titles),
            self._svg(lambda figure: curves.draw(figure, small), (4.0, 5.0), text, titles),
            text,
        )

    def phases(self, rows: Sequence[dict[str, Any]], new_tokens: int) -> Chart:
        """Latency of a profile's rows by phase."""

        def draw(figure: Figure) -> None:
            draw_phases(figure.subplots(), rows, new_tokens, columns=2)

        height = 0.3 * len(rows) + 1.5
        text = "latency by phase, medians"
        return Chart(self._svg(draw, (6.2, height), text), self._svg(draw, (4.0, height), text), text)

    def savings(self, rows: Sequence[dict[str, Any]]) -> Chart:
        """Savings of a profile's rows, by the clock against FLOPs."""

        def draw(figure: Figure) -> None:
            axes = figure.subplots()
            draw_savings(axes, rows)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(PercentFormatter(1, decimals=0))

        text = "share of the full prefill saved, by the clock and by FLOPs; on the diagonal both are equal"
        return Chart(self._svg(draw, (6.2, 3.8), text), self._svg(draw, (4.0, 3.4), text), text)

    def risk(self, rows: Sequence[dict[str, Any]], tolerance: float, unit: str) -> Chart:
        """Loss against cost of the settings that `tokenprune tune` tested."""

        def draw(figure: Figure) -> None:
            risk_plot(figure, rows, tolerance, unit)

        text = "loss on the test prompts against cost, a line per policy; filled marks are certified"
        return Chart(self._svg(draw, (11.5, 5.0), text), self._svg(draw, (4.0, 4.0), text), text)

    def _svg(
        self, draw: Callable[[Figure], None], size: Size, text: str, titles: Mapping[str, str] | None = None
    ) -> str:
        """A drawing as an SVG element.

        Args:
            draw: draws into an empty figure with constrained layout.
            size: of the figure.
            text: for those who do not see it.
            titles: tooltips, by the ids that `draw` gave to parts of the figure.
        """
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=size, layout="constrained")
            draw(figure)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        ElementTree.register_namespace("", _SVG)
        ElementTree.register_namespace("xlink", _XLINK)
        root = ElementTree.fromstring(buffer.getvalue())
        for element in root.findall(f"{{{_SVG}}}metadata"):
            root.remove(element)
        for element in root.iter():
            title = (titles or {}).get(element.get("id", ""))
            if title is not None:
                element.set("class", "curve")
                first = ElementTree.Element(f"{{{_SVG}}}title")
                first.text = title
                element.insert(0, first)
        for name in ("width", "height"):
            del root.attrib[name]
        root.set("role", "img")
        root.set("aria-label", text)
        self._drawn += 1
        return _on_page(ElementTree.tostring(root, encoding="unicode"), f"chart{self._drawn}-")


def _on_page(svg: str, prefix: str) -> str:
    """An SVG element with unique ids, and with the page's colours."""
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("#000000", "var(--ink)").replace("#ffffff", "var(--paper)")


def _described(curve: curves.Curve) -> str:
    """A line per setting, for a tooltip."""
    lines = [f"{p.cost:.0f} tokens: {p.value:.1%} ({p.low:.1%} to {p.high:.1%})" for p in curve.points]
    return "\n".join([curve.name + (", compact" if curve.dotted else ""), *lines])
