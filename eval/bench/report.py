"""Rows, tables and figures of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import markdown_table, write_csv, write_json
from ..intervals import bootstrap_interval
from ..machine import device_and_threads
from ..setting import FULL, PruningSetting
from .run import BASELINES, Key, Plan
from .tasks import ALL

Rows = Sequence[dict[str, Any]]


def rows(plan: Plan, results: dict[Key, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per setting and task, and one over all tasks.

    Args:
        plan: what was run.
        results: of `run.run`.

    Returns:
        Rows with `model`, `policy` (`full` for the full model), `keep`, `positions`, `task`, `exact_match`,
        `n`, its 95 % interval `low` and `high`, and `visual_tokens` (mean per question, over decoder layers). Of
        `existence` also `precision`, `recall` and `f1` of the answer yes. Against each of `BASELINES` at the
        same keep ratio and positions, paired by question: the mean difference `vs_NAME` and its interval `vs_NAME_low`,
        `vs_NAME_high`; likewise `vs_full`, and against the policy that the plan names.
    """
    out = []
    for setting in plan.settings:
        key = (setting.name, setting.keep, setting.positions)
        others = {} if setting.is_full else _compared_with(setting, plan, results)
        for task in (*plan.tasks, ALL):
            right = _per_question(results, key, task, plan, "right")
            low, high = bootstrap_interval(right)
            row = {
                "model": plan.model,
                "policy": setting.name,
                "keep": setting.keep,
                "positions": setting.positions,
                "task": task,
                "exact_match": float(right.mean()),
                "n": len(right),
                "low": low,
                "high": high,
                "visual_tokens": float(_per_question(results, key, task, plan, "kept").mean()),
            }
            if task == "existence":
                row |= yes_no(results[(*key, task)]["texts"], results[(*key, task)]["answers"])
            for name, other in others.items():
                if other != key and (*other, plan.tasks[0]) in results:
                    row |= _paired(name, right - _per_question(results, other, task, plan, "right"))
            out.append(row)
    return out


def _compared_with(setting: PruningSetting, plan: Plan, results: dict[Key, Any]) -> dict[str, tuple[Any, ...]]:
    """By name, the settings (policy, keep, positions) that a setting is compared with."""
    others: dict[str, tuple[Any, ...]] = {FULL: next(key[:3] for key in results if key[0] == FULL)}
    for name in BASELINES:
        others[name] = (name, setting.keep, "original" if name == "downsample" else setting.positions)
    if plan.against is not None:
        others[plan.against] = (plan.against, setting.keep, setting.positions)
    return others


def _per_question(results: dict[Key, Any], setting: tuple[Any, ...], task: str, plan: Plan, name: str) -> np.ndarray:
    """A value of every question of a task, or of all tasks, (n,) float64."""
    tasks = plan.tasks if task == ALL else (task,)
    return np.concatenate([np.array(results[(*setting, each)][name], float) for each in tasks])


def _paired(name: str, difference: np.ndarray) -> dict[str, float]:
    low, high = bootstrap_interval(difference)
    return {f"vs_{name}": float(difference.mean()), f"vs_{name}_low": low, f"vs_{name}_high": high}


def yes_no(texts: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Precision, recall and F1 of the answer yes, as POPE reports them (arXiv 2305.10355)."""
    said, true = (np.array([text == "yes" for text in each]) for each in (texts, answers))
    hits = float((said & true).sum())
    precision, recall = hits / max(said.sum(), 1), hits / max(true.sum(), 1)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"precision": float(precision), "recall": float(recall), "f1": f1}


def markdown(rows: Rows, run: dict[str, Any]) -> str:
    """Settings by tasks, exact match in %, and the difference of each to random tokens and downsampled images.

    Args:
        rows: of `rows`.
        run: how they were made: `command`, `machine` and `identity`.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    compared = {key[3:] for row in rows for key in row if key.startswith("vs_") and not key.endswith(("_low", "_high"))}
    others = ["random", "downsample", *sorted(compared - {FULL, *BASELINES})]
    identity, machine = run["identity"], run["machine"]
    head = [
        f"Exact match in %, {rows[0]['n']} questions per task ({rows[0]['model']}). In brackets the 95 % bootstrap "
        "interval; *over random*: the difference by question, in points, with its interval; *kept*: visual tokens per "
        "question, a mean over decoder layers and tasks.",
        "",
        f"Run: `{run['command']}`, tokenprune {identity['tokenprune']}, transformers "
        f"{identity['transformers']}, torch {machine['torch']}, {device_and_threads(machine)}, "
        f"weights {identity['weights']}.",
        "",
    ]
    lines = []
    for policy, keep, positions in ranked(rows):
        by_task = {row["task"]: row for row in rows if _setting(row) == (policy, keep, positions)}
        overall = by_task[ALL]
        lines.append(
            [
                FULL if policy == FULL else f"`{policy}`",
                "" if policy == FULL else f"{keep:g}",
                "" if policy in (FULL, "downsample") else positions,
                f"{overall['visual_tokens']:.0f}",
                *(f"{100 * by_task[task]['exact_match']:.0f}" for task in tasks[:-1]),
                f"**{100 * overall['exact_match']:.1f}** [{100 * overall['low']:.1f}, {100 * overall['high']:.1f}]",
                *(gain(overall, name) for name in others),
            ]
        )
    heads = ["", "keep", "positions", "kept", *tasks, *(f"over {name}" for name in others)]
    table = markdown_table(heads, "lrl" + "r" * (len(heads) - 3), lines)
    return "\n".join(head + table) + "\n"


def _setting(row: dict[str, Any]) -> tuple[str, float | int, str]:
    return row["policy"], row["keep"], row["positions"]


def ranked(rows: Rows) -> list[tuple[str, float | int, str]]:
    """Settings (policy, keep, positions): the full model, then by keep ratio and positions the best policy first."""
    means = {_setting(row): row["exact_match"] for row in rows if row["task"] == ALL}
    budgets = list(dict.fromkeys(setting[1:] for setting in means))
    return sorted(means, key=lambda s: (s[0] != FULL, budgets.index(s[1:]), -means[s]))


def gain(row: dict[str, Any], name: str) -> str:
    """A paired difference in points with its interval; empty if the row has none."""
    if f"vs_{name}" not in row:
        return ""
    value, low, high = (100 * row[f"vs_{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def write(rows: Rows, out: Path, run: dict[str, Any]) -> None:
    """Write `results.csv`, `results.json` (`run` and the rows), `results.md`, `curves.png` and `tasks.png`."""
    from . import plots

    write_json(out / "results.json", {**run, "rows": rows})
    write_csv(out / "results.csv", rows)
    (out / "results.md").write_text(markdown(rows, run))
    plots.curves(rows, out / "curves.png")
    plots.tasks(rows, out / "tasks.png")
