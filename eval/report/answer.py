"""The answer on top of the report: the cheapest setting that loses no more than so much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..profile.report import MIB
from ..setting import FULL, label
from .measured import Measured, Results

#: Losses of accuracy that the report looks up the cheapest setting for.
TOLERANCES = (0.01, 0.02, 0.05, 0.1)
#: Of these, the first that any setting meets makes the headline.
_HEADLINES = (0.02, 0.05, 0.1)
_SAVES = 0.005  # a setting that saves less is not cheaper than the full model


@dataclass(frozen=True)
class Line:
    """A row of the table of answers; texts are empty where no setting is within the tolerance."""

    tolerance: str
    setting: str
    tokens: str
    saved: str
    loss: str


@dataclass(frozen=True)
class Answer:
    """What the summary says about some results.

    Attributes:
        title: of the results.
        setting: the recommended one; empty if there is none.
        text: the sentence after it.
        lines: the cheapest setting per tolerance.
        note: how sure this is.
    """

    title: str
    setting: str
    text: str
    lines: tuple[Line, ...] = ()
    note: str = ""


def decimal(value: float) -> str:
    """One digit after the point; what rounds to zero has no sign."""
    return f"{round(value, 1) + 0.0:.1f}"


def percent(share: float | None) -> str:
    """`55 %`; empty if it is unknown."""
    return "" if share is None else f"{100 * share:.0f} %"


def cheapest(results: Results, tolerance: float) -> Measured | None:
    """The setting with the fewest tokens among those whose loss is at most `tolerance` with 95 % confidence: the upper
    end of its interval is. None if there is none."""
    within = [
        each
        for each in results.pruned
        if each.tokens is not None
        and (results.saved(each) or 0.0) > _SAVES
        and each.loss is not None
        and each.loss.high is not None
        and each.loss.high <= tolerance + 1e-9
    ]
    return min(within, key=lambda each: (each.tokens, each.loss.value if each.loss else 0.0), default=None)


def points(setting: Measured, unit: str = "") -> str:
    """`1.2 points (0.8 to 1.6)`: a setting's loss with its interval, where `unit` is " points"."""
    loss = setting.loss
    if loss is None:
        return ""
    interval = ""
    if loss.low is not None and loss.high is not None:
        interval = f" ({decimal(100 * loss.low)} to {decimal(100 * loss.high)})"
    return f"{decimal(100 * loss.value)}{unit}{interval}"


def of_results(results: Results) -> Answer:
    """The answer of a benchmark or an evaluation."""
    full = results.full
    if full is None:
        return Answer(results.title, "", "The full model was not measured, so that nothing can be said about losses.")
    if full.tokens is None or not any(each.loss is not None for each in results.pruned):
        return Answer(results.title, "", "Tokens or losses are unknown for all settings.")
    if all(each.loss is None or each.loss.high is None for each in results.pruned):
        return Answer(results.title, "", "Losses have no intervals, so that no setting can be recommended.")
    found = {tolerance: cheapest(results, tolerance) for tolerance in TOLERANCES}
    lines = tuple(_line(results, tolerance, each) for tolerance, each in found.items())
    note = (
        "Cheapest: the fewest visual tokens, in the mean over decoder layers. Confidence is that of single settings: "
        f"it is not corrected for choosing among {len(results.pruned)}."
    )
    for tolerance in _HEADLINES:
        chosen = found[tolerance]
        if chosen is not None:
            text = (
                f"is the cheapest setting that loses at most {100 * tolerance:g} points, with 95 % "
                f"confidence. It holds {_tokens(results, chosen)} and loses {points(chosen, ' points')}."
            )
            return Answer(results.title, chosen.label, text, lines, note)
    nearest = min((e for e in results.pruned if e.loss), key=lambda each: each.loss.value if each.loss else 0.0)
    text = (
        f"No setting loses at most {100 * _HEADLINES[-1]:g} points with 95 % confidence. {nearest.label} loses least, "
        f"{points(nearest, ' points')}, with {_tokens(results, nearest)}."
    )
    return Answer(results.title, "", text, lines, note)


def _tokens(results: Results, setting: Measured) -> str:
    """`72 of 160 visual tokens (55 % fewer)`."""
    total = results.full.tokens if results.full else None
    return f"{setting.tokens:.0f} of {total:.0f} visual tokens ({percent(results.saved(setting))} fewer)"


def _line(results: Results, tolerance: float, setting: Measured | None) -> Line:
    within = f"{100 * tolerance:g} point{'s' * (tolerance != 0.01)}"
    if setting is None:
        return Line(within, "none", "", "", "")
    return Line(within, setting.label, f"{setting.tokens:.0f}", percent(results.saved(setting)), points(setting))


def of_profile(title: str, rows: Sequence[dict[str, Any]], new_tokens: int) -> Answer:
    """The answer of a profile: the setting with the shortest request."""

    full = next((row for row in rows if row["policy"] == FULL), None)
    pruned = [row for row in rows if row["policy"] != FULL]
    if full is None or not pruned:
        return Answer(title, "", "There is no pruned setting beside a full model to compare.")
    fastest = min(pruned, key=lambda row: row["total_ms"])
    saved = 1 - fastest["total_ms"] / full["total_ms"]
    slower = sum(row["total_ms"] >= full["total_ms"] for row in pruned)
    note = f"Medians; a request is the vision encoder, the prefill and {new_tokens - 1} decoded tokens."
    if slower:
        note += f" {slower} of {len(pruned)} settings {'is' if slower == 1 else 'are'} no faster than the full model."
    if saved <= 0:
        return Answer(title, "", "No setting is faster than the full model.", (), note)
    prefill = 1 - fastest["prefill_ms"] / full["prefill_ms"]
    text = (
        f"is fastest: a request takes {percent(saved)} less time, its prefill {percent(abs(prefill))} "
        f"{'less' if prefill >= 0 else 'more'}. Its KV cache takes {fastest['kv_cache_bytes'] / MIB:.1f} MiB "
        f"instead of {full['kv_cache_bytes'] / MIB:.1f}."
    )
    return Answer(title, label(fastest["policy"], fastest["keep"]), text, (), note)
