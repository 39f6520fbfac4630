"""Curves of accuracy against cost: what is highlighted, where names stand, and what the axes show."""

import itertools
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from tokenprune.eval.bench import plots
from tokenprune.eval.curve_labels import halo, spread
from tokenprune.eval.curves import Curve, Plot, Point, best, draw

BENCH = Path(__file__).parents[2] / "docs" / "bench"


def _curve(name, *points):
    return Curve(name, tuple(Point(cost, value, value - 0.01, value + 0.01) for cost, value in points))


def _drawn(plot, size=(11, 7)):
    figure = Figure(figsize=size, layout="constrained")
    draw(figure, plot)
    halo(figure)
    figure.draw_without_rendering()
    return figure


def test_the_best_fall_short_least_at_their_own_cost():
    cheap, dear, poor = _curve("cheap", (10, 0.8)), _curve("dear", (100, 0.9)), _curve("poor", (100, 0.85))
    assert [curve.name for curve in best([poor, dear, cheap])] == ["dear", "cheap", "poor"]
    # as accurate as "poor" is, at a tenth of the cost, and nothing beats it there
    assert [curve.name for curve in best([poor, dear, cheap], 2)] == ["dear", "cheap"]


def test_names_do_not_overlap_and_stay_near():
    assert spread([1, 5, 9], [2, 2, 2], (0, 10)) == pytest.approx([1, 5, 9])
    assert spread([5, 5, 5], [2, 2, 2], (0, 10)) == pytest.approx([3, 5, 7])
    assert spread([9, 9.5], [2, 2], (0, 10)) == pytest.approx([7, 9])
    assert spread([0, 0.5], [2, 2], (0, 10)) == pytest.approx([1, 3])


@pytest.mark.parametrize("size", [(11, 7), (4, 5)])
@pytest.mark.parametrize("model", ["llava", "qwen"])
def test_names_of_the_committed_benchmarks_can_be_read(model, size):
    rows = json.loads((BENCH / model / "results.json").read_text())["rows"]
    plot = plots.plot(rows)
    if size[0] < 5:
        plot = Plot(plot.curves, plot.baselines, plot.full, plot.measure, label_all=False)
    figure = _drawn(plot, size)
    (axes,) = figure.axes
    texts = [text for text in axes.texts if text.get_text()]
    assert len(texts) == (1 + len(plot.curves) if size[0] > 5 else 1 + 6 + 3)
    boxes = [Text.get_window_extent(text) for text in texts]  # without the thin line to the curve
    for i, box in enumerate(boxes):
        assert box.x0 > 0
        assert box.x1 <= figure.bbox.x1 + 1
        for j, other in enumerate(boxes[:i]):
            assert not box.overlaps(other), (texts[i].get_text(), texts[j].get_text())


def test_the_axis_ends_at_100_percent_and_begins_where_it_says():
    full = Point(100, 1.0, 1.0, 1.0)
    high = _drawn(Plot([_curve("a", (10, 0.93), (50, 0.985))], full=full)).axes[0]
    assert high.get_ylim() == pytest.approx((0.9, 1.0))
    assert high.get_xscale() == "log"
    assert [label.get_text() for label in high.get_yticklabels()][-1] == "100%"
    low = _drawn(Plot([_curve("a", (10, 0.23), (50, 0.985))], full=full)).axes[0]
    assert low.get_ylim() == pytest.approx((0.0, 1.0))
    # an accuracy relative to the full model's may be above
    above = _drawn(Plot([_curve("a", (10, 0.95), (50, 1.02))], full=full)).axes[0]
    assert above.get_ylim()[1] == pytest.approx(1.02)


def test_baselines_are_grey_and_others_faint():
    curves = [_curve(f"p{i}", (10, 0.9 - i / 100), (40, 0.95 - i / 100)) for i in range(9)]
    axes = _drawn(Plot([*curves, _curve("random", (10, 0.3), (40, 0.4))], ("random",), Point(100, 1, 1, 1))).axes[0]
    widths = {line.get_gid(): line.get_linewidth() for line in axes.lines if line.get_gid()}
    assert [widths[f"curve-{i}"] for i in range(9)] == [2] * 6 + [0.9] * 3
    assert widths["curve-9"] == 1.3
    colours = {line.get_gid(): line.get_color() for line in axes.lines if line.get_gid()}
    assert len({colours[f"curve-{i}"] for i in range(6)}) == 6
    assert len({colours[f"curve-{i}"] for i in range(6, 9)}) == 1


@pytest.mark.parametrize("width", [4, 11])
def test_long_names_fit(width):
    curves = [_curve("a", (10, 0.5), (40, 0.6)), _curve("divprune+pyramiddrop", (60, 0.8), (95, 0.9))]
    (axes,) = _drawn(Plot(curves, full=Point(100, 1, 1, 1)), (width, 5)).axes
    assert max(Text.get_window_extent(text).x1 for text in axes.texts) <= axes.get_window_extent().x1 + 1
    shown = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert len(shown) >= 2
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(shown))


def test_a_single_setting_and_none_are_drawn():
    assert len(_drawn(Plot([_curve("a", (10, 0.9))])).axes[0].lines) == 1
    assert _drawn(Plot([], full=Point(10, 1, 1, 1))).axes[0].texts[0].get_text() == "no pruned setting"


def test_tasks_that_some_settings_were_not_asked_are_left_empty(tmp_path):
    rows = json.loads((BENCH / "llava" / "results.json").read_text())["rows"]
    some = [row for row in rows if row["policy"] in ("full", "auto", "divprune") and row["keep"] in (1.0, 0.1)]
    some = [row for row in some if row["policy"] != "auto" or row["task"] == "word"]
    plots.tasks(some, tmp_path / "tasks.png")
    plots.curves(some, tmp_path / "curves.png")
    assert all((tmp_path / name).stat().st_size > 3000 for name in ("tasks.png", "curves.png"))


def test_ten_budgets_make_one_line():
    curve = _curve("a", *((10 * i, 0.5 + i / 25) for i in range(1, 11)))
    (line,) = [each for each in _drawn(Plot([curve])).axes[0].lines if each.get_gid() == "curve-0"]
    assert len(line.get_xdata()) == 10
