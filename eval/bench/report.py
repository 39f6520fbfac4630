"""Rows, tables and pictures of a benchmark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cells import write_csv
from .run import BASELINES, Plan
from .tasks import ALL

_RESAMPLES = 2000


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of a mean (percentiles)."""
    if np.ptp(values) == 0:  # nothing to resample
        return float(values[0]), float(values[0])
    # A resample is how often each of the few different values is drawn.
    different, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(values), counts / len(values), _RESAMPLES)
    low, high = np.percentile(drawn @ different / len(values), (2.5, 97.5))
    return float(low), float(high)


def rows(plan: Plan, results: dict[tuple, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per setting and task, and one over all tasks.

    Returns:
        Rows with `model`, `policy` (`full` for the stock model), `keep`, `positions`, `task`, `exact_match`,
        `n`, its interval `low` and `high`, and `visual_tokens` (mean per question, over decoder layers). Of
        `existence` also `precision`, `recall` and `f1` of the answer yes. Against each of `BASELINES` at the
        same budget and positions, paired by question: `vs_NAME` and its interval `vs_NAME_low`, `vs_NAME_high`;
        likewise `vs_full`, and against the policy that the plan names.
    """
    out = []
    for setting in plan.settings:
        s = (setting.name, setting.keep, setting.positions)
        others: dict[str, tuple] = {}
        if setting.name != "full":
            others["full"] = next(k[:3] for k in results if k[0] == "full")
            for name in BASELINES:
                positions = "original" if name == "downsample" else setting.positions
                others[name] = (name, setting.keep, positions)
            if plan.against is not None:
                others[plan.against] = (plan.against, setting.keep, setting.positions)
        for task in (*plan.tasks, ALL):
            own = _column(results, s, task, plan, "right")
            low, high = interval(own)
            row = {
                "model": plan.model,
                "policy": setting.name,
                "keep": setting.keep,
                "positions": setting.positions,
                "task": task,
                "exact_match": float(own.mean()),
                "n": len(own),
                "low": low,
                "high": high,
                "visual_tokens": float(_column(results, s, task, plan, "kept").mean()),
            }
            if task == "existence":
                row |= yes_no(results[(*s, task)]["texts"], results[(*s, task)]["answers"])
            for name, other in others.items():
                if other != s and (*other, plan.tasks[0]) in results:
                    row |= _paired(name, own - _column(results, other, task, plan, "right"))
            out.append(row)
    return out


def _column(results: dict, setting: tuple, task: str, plan: Plan, name: str) -> np.ndarray:
    some = plan.tasks if task == ALL else (task,)
    return np.concatenate([np.array(results[(*setting, t)][name], float) for t in some])


def _paired(name: str, difference: np.ndarray) -> dict[str, float]:
    low, high = interval(difference)
    return {f"vs_{name}": float(difference.mean()), f"vs_{name}_low": low, f"vs_{name}_high": high}


def yes_no(texts: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Precision, recall and F1 of the answer yes, as POPE reports them (arXiv 2305.10355)."""
    said, true = (np.array([text == "yes" for text in some]) for some in (texts, answers))
    hits = float((said & true).sum())
    precision, recall = hits / max(said.sum(), 1), hits / max(true.sum(), 1)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"precision": float(precision), "recall": float(recall), "f1": f1}


def markdown(found: Sequence[dict[str, Any]], ran: dict[str, Any]) -> str:
    """Per budget and positions: policies by tasks, exact match in %, and what each gains over random."""
    tasks = list(dict.fromkeys(row["task"] for row in found))
    given = {key[3:] for row in found for key in row if key.startswith("vs_") and not key.endswith(("_low", "_high"))}
    others = ["random", "downsample", *sorted(given - {"full", *BASELINES})]
    n = found[0]["n"]
    lines = [
        f"Exact match in %, {n} questions per task ({found[0]['model']}). In brackets the 95 % bootstrap interval; "
        "*over random*: the difference by question, in points, with its interval; *kept*: visual tokens per question, "
        "a mean over decoder layers and tasks.",
        "",
        f"Run: `{ran['command']}`, tokenprune {ran['identity']['tokenprune']}, transformers "
        f"{ran['identity']['transformers']}, torch {ran['machine']['torch']}, {ran['machine']['device']}, "
        f"{ran['machine']['threads']} threads, weights {ran['identity']['weights']}.",
        "",
        f"| | keep | positions | kept | {' | '.join(tasks)} | over {' | over '.join(others)} |",
        f"|---|--:|---|--:|{'--:|' * (len(tasks) + len(others))}",
    ]
    for setting in ranked(found):
        some = {row["task"]: row for row in found if (row["policy"], row["keep"], row["positions"]) == setting}
        last = some[ALL]
        cells = [f"{100 * some[t]['exact_match']:.0f}" for t in tasks[:-1]]
        cells.append(f"**{100 * last['exact_match']:.1f}** [{100 * last['low']:.1f}, {100 * last['high']:.1f}]")
        cells += [gain(last, name) for name in others]
        title = "full" if setting[0] == "full" else f"`{setting[0]}`"
        places = "" if setting[0] in ("full", "downsample") else setting[2]
        keep = "" if setting[0] == "full" else f"{setting[1]:g}"
        lines.append(f"| {title} | {keep} | {places} | {last['visual_tokens']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def ranked(found: Sequence[dict[str, Any]]) -> list[tuple[str, float | int, str]]:
    """Settings (policy, keep, positions): the full model, then budgets and positions as run, the best policy first."""
    means = {(r["policy"], r["keep"], r["positions"]): r["exact_match"] for r in found if r["task"] == ALL}
    budgets = list(dict.fromkeys(setting[1:] for setting in means))
    return sorted(means, key=lambda s: (s[0] != "full", budgets.index(s[1:]), -means[s]))


def gain(row: dict[str, Any], name: str) -> str:
    """A paired difference in points with its interval, if the row has it."""
    if f"vs_{name}" not in row:
        return ""
    value, low, high = (100 * row[f"vs_{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def write(found: Sequence[dict[str, Any]], out: Path, ran: dict[str, Any]) -> None:
    """`results.csv`, `results.json` (what was run, and the rows), `results.md`, `curves.png` and `tasks.png`."""
    from . import plots

    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "results.csv", found)
    (out / "results.json").write_text(dumps(found, ran))
    (out / "results.md").write_text(markdown(found, ran))
    plots.curves(found, out / "curves.png")
    plots.tasks(found, out / "tasks.png")


def dumps(found: Sequence[dict[str, Any]], ran: dict[str, Any]) -> str:
    return json.dumps({**ran, "rows": found}, indent=1) + "\n"
