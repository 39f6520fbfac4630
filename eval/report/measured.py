"""Results of `tokenprune bench` and `tokenprune eval` in one form: settings with their cost, accuracy and loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..bench.run import BASELINES
from ..bench.tasks import ALL
from ..curves import Curve, Plot, Point
from ..lmms.grid_report import primary
from ..setting import FULL, format_keep

Row = dict[str, Any]
_Key = tuple[str, str, str]  # policy, keep ratio as text, positions


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; `low` and `high` are None if it is unknown."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Measured:
    """A setting.

    Attributes:
        policy: its name; `full` for the full model.
        keep: keep ratio or number of tokens as text; empty for the full model.
        positions: `original` or `compact`; empty if the results do not say.
        tokens: visual tokens per question, a mean over decoder layers; None if unknown.
        accuracy: a share.
        loss: what the full model has more, paired by question; None without a full model.
        by_task: accuracy by task, in the task's own metric.
        per_second: samples per second; None if they were not timed.
    """

    policy: str
    keep: str
    positions: str
    tokens: float | None
    accuracy: Estimate | None
    loss: Estimate | None
    by_task: dict[str, float]
    per_second: float | None = None

    @property
    def is_full(self) -> bool:
        return self.policy == FULL

    @property
    def label(self) -> str:
        """`divprune 0.25`, or `divprune 0.25, compact`."""
        return f"{self.policy} {self.keep}".strip() + (", compact" if self.positions == "compact" else "")


@dataclass(frozen=True)
class Results:
    """All settings of one model.

    Attributes:
        title: the model, and what it was asked.
        measure: what `accuracy` is.
        note: how intervals and accuracy are to be read.
        settings: of the model, the full one included if it was measured.
        metrics: by task, the name of its metric.
        rows: those that the settings were made of.
    """

    title: str
    measure: str
    note: str
    settings: tuple[Measured, ...]
    metrics: dict[str, str]
    rows: tuple[Row, ...]

    @property
    def full(self) -> Measured | None:
        return next((each for each in self.settings if each.is_full), None)

    @property
    def pruned(self) -> list[Measured]:
        return [each for each in self.settings if not each.is_full]

    def saved(self, setting: Measured) -> float | None:
        """The share of the full model's visual tokens that a setting does not hold."""
        if self.full is None or not self.full.tokens or setting.tokens is None:
            return None
        return 1 - setting.tokens / self.full.tokens

    def plot(self, label_all: bool) -> Plot | None:
        """Accuracy against tokens, a curve for each policy; None if no setting has both."""
        curves: dict[tuple[str, str], list[Point]] = {}
        for each in self.pruned:
            point = _point(each)
            if point is not None:
                curves.setdefault((each.policy, each.positions), []).append(point)
        if not curves:
            return None
        return Plot(
            [
                Curve(name, tuple(sorted(points)), positions == "compact")
                for (name, positions), points in curves.items()
            ],
            BASELINES,
            None if self.full is None else _point(self.full),
            self.measure,
            label_all,
        )


def _point(setting: Measured) -> Point | None:
    accuracy = setting.accuracy
    if accuracy is None or not setting.tokens:
        return None
    low, high = (accuracy.value if end is None else end for end in (accuracy.low, accuracy.high))
    return Point(setting.tokens, accuracy.value, low, high)


def _by_run(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what is compared: the model, and the wrapper and its arguments where one model was run with several."""
    runs: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        runs.setdefault((row["model"], row.get("backend") or "", row.get("arguments") or ""), []).append(row)
    models = [model for model, *_ in runs]
    return {", ".join(filter(None, run)) if models.count(run[0]) > 1 else run[0]: each for run, each in runs.items()}


def _by_setting(rows: Sequence[Row]) -> dict[_Key, list[Row]]:
    found: dict[_Key, list[Row]] = {}
    for row in rows:
        found.setdefault((row["policy"], _keep(row), row.get("positions") or ""), []).append(row)
    return found


def _keep(row: Row) -> str:
    if row["policy"] == FULL:
        return ""
    keep = row["keep"]
    return keep if isinstance(keep, str) else format_keep(keep)


def of_bench(rows: Sequence[Row]) -> Iterator[Results]:
    """Results of `tokenprune bench`, model by model."""
    for model, of_model in _by_run(rows).items():
        settings = []
        for key, of_setting in _by_setting(of_model).items():
            tasks = {row["task"]: row["exact_match"] for row in of_setting}
            overall = next((row for row in of_setting if row["task"] == ALL), None)
            tasks.pop(ALL, None)
            tokens, score, loss = None, None, None
            if overall is not None:  # it was asked all tasks
                tokens, loss = overall["visual_tokens"], _loss(overall)
                score = Estimate(overall["exact_match"], overall["low"], overall["high"])
            settings.append(Measured(*key, tokens, score, loss, tasks))
        metrics = dict.fromkeys((row["task"] for row in of_model if row["task"] != ALL), "exact match")
        questions = {row["n"] for row in of_model if row["task"] == ALL}
        note = (
            "Exact match over all tasks, with 95 % bootstrap intervals over questions. Losses are paired with the full "
            "model by question."
        )
        asked = f", {max(questions)} questions" if questions else ""
        yield Results(
            f"{model}, embedded benchmark{asked}", "exact match", note, tuple(settings), metrics, tuple(of_model)
        )


def _loss(overall: Row) -> Estimate | None:
    """What the full model has more over all tasks."""
    if overall["policy"] == FULL:
        return Estimate(0.0, 0.0, 0.0)
    if overall.get("vs_full") is None:
        return None
    return Estimate(-overall["vs_full"], -overall["vs_full_high"], -overall["vs_full_low"])


def of_eval(rows: Sequence[Row]) -> Iterator[Results]:
    """Results of `tokenprune eval`, model by model.

    Accuracy is relative to the full model's, in the mean over tasks. Without a full model it is the mean over tasks,
    where all have the same metric with values up to 1.
    """
    for model, of_model in _by_run(rows).items():
        chosen = primary(of_model)
        single = [row for row in chosen if not row["group"]] or chosen
        metrics = {row["task"]: row["metric"] for row in single}
        has_full = any(row["policy"] == FULL for row in single)
        total = _mean([row["visual_tokens"] or None for row in single])  # the full model's rows have none
        settings = []
        for key, of_setting in _by_setting(single).items():
            # Tasks may be hard or easy: without some of them, accuracy and loss cannot be compared.
            scores = _scores(of_setting, has_full) if len(of_setting) == len(metrics) else (None, None)
            setting = _evaluated(key, of_setting, scores)
            settings.append(replace(setting, tokens=total) if setting.is_full else setting)
        count = f"{len(metrics)} task{'s' * (len(metrics) != 1)}"
        if has_full:
            measure = "accuracy, of the full model's"
            note = (
                f"Accuracy is relative to the full model's, in the mean over {count}. Losses are paired with the full "
                "model by question; their 95 % bootstrap intervals are combined over tasks as independent ones."
            )
        else:
            measure = f"mean {' / '.join(sorted(set(metrics.values())))}"
            note = f"Means over {count}. The full model was not evaluated, so that losses are unknown."
        yield Results(f"{model}, lmms-eval, {count}", measure, note, tuple(settings), metrics, tuple(of_model))


def _evaluated(key: _Key, rows: Sequence[Row], scores: tuple[Estimate | None, Estimate | None]) -> Measured:
    """A setting from its rows, one per task, and its accuracy and loss."""
    tokens = _mean([row["kept_tokens"] or None for row in rows])
    by_task = {row["task"]: row["value"] for row in rows}
    speed = _mean([row["samples_per_second"] for row in rows])
    return Measured(*key, tokens, *scores, by_task, speed)


def _scores(rows: Sequence[Row], has_full: bool) -> tuple[Estimate | None, Estimate | None]:
    """Accuracy and loss of a setting; None where unknown."""
    if not has_full:
        values = [row["value"] for row in rows]
        if len({row["metric"] for row in rows}) == 1 and all(0 <= value <= 1 for value in values):
            return Estimate(sum(values) / len(values)), None
        return None, None
    if rows[0]["policy"] == FULL:
        return Estimate(1.0, 1.0, 1.0), Estimate(0.0, 0.0, 0.0)
    loss = _relative_loss(rows)
    if loss is None:
        return None, None
    low, high = (None if end is None else 1 - end for end in (loss.high, loss.low))
    return Estimate(1 - loss.value, low, high), loss


def _relative_loss(rows: Sequence[Row]) -> Estimate | None:
    """Mean over tasks of one minus the relative accuracy; None if it is unknown for a task."""
    shares = [row["relative"] for row in rows if row.get("relative") is not None]
    if len(shares) < len(rows):
        return None
    value = sum(1 - share for share in shares) / len(rows)
    if any(row.get("low") is None or not row["value"] for row in rows):
        return Estimate(value)
    # Differences are in the task's metric; the full model's value in it is value / relative.
    scales = [row["relative"] / row["value"] for row in rows]
    below, above = (
        math.sqrt(sum(((row[end] - row["difference"]) * scale) ** 2 for row, scale in zip(rows, scales, strict=True)))
        / len(rows)
        for end in ("low", "high")
    )
    return Estimate(value, value - above, value + below)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
