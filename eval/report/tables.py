"""Tables of the report, which a click on a head sorts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..profile.report import MIB
from ..setting import FULL
from .answer import decimal
from .measured import Measured, Results


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        shown: its text.
        key: the value that its column is sorted by; None sorts last.
        shade: how dark its background is, from 0 to 1; None: it has none.
    """

    shown: str
    key: float | str | None
    shade: float | None = None


@dataclass(frozen=True)
class Head:
    """A column.

    Attributes:
        name: its title.
        number: whether it has numbers, which stand at the right.
        text: what it means; empty if its name says so.
    """

    name: str
    number: bool = True
    text: str = ""


@dataclass(frozen=True)
class Table:
    """A table of cells.

    Attributes:
        heads: of its columns.
        rows: of cells, one per column.
        strong: for each row, whether it is set off: the full model's.
        sorted_by: column that the rows are sorted by from the start, in descending order; None: they are not.
    """

    heads: tuple[Head, ...]
    rows: tuple[tuple[Cell, ...], ...]
    strong: tuple[bool, ...]
    sorted_by: int | None = None


def number(value: float | None, form: str, factor: float = 1.0, shade: float | None = None) -> Cell:
    """A cell with a number times a factor; empty where it is missing."""
    if value is None or math.isnan(value):
        return Cell("", None)
    return Cell(format(factor * value, form), value, shade)


def text(value: str) -> Cell:
    """A cell with text."""
    return Cell(value, value)


def keep(value: str) -> Cell:
    """A cell with a keep ratio, sorted as a number where it is one."""
    try:
        return Cell(value, float(value))
    except ValueError:
        return Cell(value, None)


def settings(results: Results) -> Table:
    """A row per setting, the most accurate first: tokens, accuracy and loss with their intervals."""
    positions = _several_positions(results)
    timed = any(each.per_second is not None for each in results.settings)
    heads = [Head("policy", False), Head("keep")]
    heads += [Head("positions", False)] * positions
    heads += [
        Head("tokens", text="visual tokens per question, a mean over decoder layers"),
        Head("fewer", text="share of the full model's visual tokens that is not held"),
        Head("accuracy, %", text=results.measure),
        Head("95 %", text="interval of the accuracy"),
        Head("loss, points", text="accuracy that the full model has more"),
        Head("95 %", text="interval of the loss"),
    ]
    heads += [Head("samples/s")] * timed
    ordered = sorted(results.settings, key=lambda each: -math.inf if each.accuracy is None else each.accuracy.value)
    rows = []
    for each in reversed(ordered):
        accuracy, loss = each.accuracy, each.loss
        cells = [text(each.policy), keep(each.keep)]
        cells += [text(each.positions)] * positions
        cells += [
            number(each.tokens, ".0f"),
            number(None if each.is_full else results.saved(each), ".0%"),
            number(accuracy.value if accuracy else None, ".1f", 100),
            _interval(accuracy.low if accuracy else None, accuracy.high if accuracy else None),
            number(loss.value if loss and not each.is_full else None, ".1f", 100),
            _interval(*((loss.low, loss.high) if loss and not each.is_full else (None, None))),
        ]
        cells += [number(each.per_second, ".2f")] * timed
        rows.append(tuple(cells))
    strong = tuple(each.is_full for each in reversed(ordered))
    return Table(tuple(heads), tuple(rows), strong, [head.name for head in heads].index("accuracy, %"))


def _interval(low: float | None, high: float | None) -> Cell:
    if low is None or high is None:
        return Cell("", None)
    return Cell(f"{decimal(100 * low)} to {decimal(100 * high)}", low)


def by_task(results: Results) -> Table:
    """A row per setting and a column per task, values in the task's metric, shaded where that is a share."""
    positions = _several_positions(results)
    heads = [Head("policy", False), Head("keep"), *[Head("positions", False)] * positions]
    heads += [Head(task, text=name) for task, name in results.metrics.items()]
    rows, strong = [], []
    for each in results.settings:
        cells = [text(each.policy), keep(each.keep), *[text(each.positions)] * positions]
        rows.append((*cells, *(_score(each, task) for task in results.metrics)))
        strong.append(each.is_full)
    return Table(tuple(heads), tuple(rows), tuple(strong))


def _several_positions(results: Results) -> bool:
    return len({each.positions for each in results.pruned}) > 1


def _score(setting: Measured, task: str) -> Cell:
    value = setting.by_task.get(task)
    if value is None:
        return Cell("", None)
    share = 0 <= value <= 1
    return number(value, ".0f" if share else ".4g", 100 if share else 1, value if share else None)


def all_metrics(results: Results) -> Table:
    """A row per setting, task and metric of `tokenprune eval`."""
    heads = (
        Head("task", False),
        Head("metric", False),
        Head("policy", False),
        Head("keep"),
        Head("value"),
        Head("of full"),
        Head("difference"),
        Head("95 %"),
        Head("n"),
    )
    rows = tuple(
        (
            *(text(str(row[name])) for name in ("task", "metric", "policy")),
            keep("" if row["keep"] is None else str(row["keep"])),
            number(row["value"], ".4g"),
            number(row.get("relative"), ".1%"),
            number(row.get("difference"), "+.3f"),
            Cell("", None) if row.get("low") is None else Cell(f"{row['low']:+.3f} to {row['high']:+.3f}", row["low"]),
            number(row.get("n"), ".0f"),
        )
        for row in results.rows
    )
    return Table(heads, rows, tuple(row["policy"] == FULL for row in results.rows))


def latency(rows: Sequence[dict[str, Any]]) -> Table:
    """A row per setting of a profile."""
    heads = (
        Head("policy", False),
        Head("keep"),
        Head("tokens", text="visual tokens, a mean over decoder layers"),
        Head("vision, ms", text="vision encoder and projector"),
        Head("select, ms"),
        Head("prefill, ms", text="selection and language model, to the first token"),
        Head("ms/token"),
        Head("KV cache, MiB"),
        Head("peak, MiB", text="memory of a prefill beside weights"),
        Head("prefill saved"),
    )
    before = next((row["visual_tokens"] for row in rows if row.get("visual_tokens")), None)
    table = []
    for row in rows:
        pruned = row["policy"] != FULL
        table.append(
            (
                text(row["policy"]),
                number(row["keep"] if pruned else None, "g"),
                number(row["kept"] if pruned else before, ".0f"),
                number(row["vision_ms"], ".1f"),
                number(row["select_ms"] if pruned else None, ".1f"),
                number(row["prefill_ms"], ".1f"),
                number(row["decode_ms_per_token"], ".1f"),
                number(row["kv_cache_bytes"], ".1f", 1 / MIB),
                number(row["peak_bytes"], ".1f", 1 / MIB),
                number(row["prefill_saving_realised"] if pruned else None, ".1%"),
            )
        )
    return Table(heads, tuple(table), tuple(row["policy"] == FULL for row in rows))
