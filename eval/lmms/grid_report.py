"""Tables of a grid: rows, paired with the full model by question, and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import markdown_table, write_csv, write_json
from ..intervals import bootstrap_interval
from ..setting import FULL
from .grid import Cell

#: The metric that papers report, for tasks that have several. Other tasks are reported by their first one.
PRIMARY = {
    "gqa": "exact_match",
    "pope": "pope_f1_score",
    "mme": "mme_perception_score",
    "mmbench_en_dev": "gpt_eval_score",
    "seedbench": "seed_image",
    "mmmu_val": "mmmu_acc",
    "ocrbench": "ocrbench_accuracy",
    "chartqa": "relaxed_overall",
    "docvqa_val": "anls",
    "infovqa_val": "anls",
    "videomme": "videomme_perception_score",
}


def rows(cells: Iterable[Cell], out: Path) -> list[dict[str, Any]]:
    """One row per setting, task and metric.

    Args:
        cells: finished ones.
        out: the folder of their results.

    Returns:
        Rows with `model`, `policy` (`full` for the full model), `keep`, `task`, `group` (whether the task is a group of
        others), `metric`, `value`, `n`; where the full model was run too: `relative` (to its value), and, paired by
        question, the `difference` of the means with its 95 % bootstrap interval `low` and `high` over the `n_paired`
        questions with a numeric score; and `visual_tokens`, `kept_tokens`, `select_ms` per sample and
        `samples_per_second`.
    """
    by_cell = {(cell.name, cell.task): cell.read(out) for cell in cells}
    out_rows: list[dict[str, Any]] = []
    for cell in cells:
        results, full = by_cell[cell.name, cell.task], by_cell.get((FULL, cell.task))
        for task, metrics in results["results"].items():
            for key, value in metrics.items():
                metric, _, filtered = key.partition(",")
                if (
                    not isinstance(value, float | int)
                    or metric.endswith(("_stderr", "_clt", "_clustered"))
                    or not filtered
                ):
                    continue
                row = {
                    "model": cell.plan.model,
                    "policy": cell.setting.name,
                    "keep": cell.keep,
                    "task": task,
                    "group": bool(results.get("group_subtasks", {}).get(task)),
                    "metric": metric,
                    "value": value,
                    "n": _count(results, task),
                }
                if full is not None:
                    row |= _against(full, results, task, key)
                for name in ("visual_tokens", "kept_tokens", "select_ms", "samples_per_second"):
                    row[name] = results.get("throughput", {}).get(f"avg_{name}")
                out_rows.append(row)
    return out_rows


def _samples(results: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """Samples of a task, or of all tasks of a group, with a `key` that is unique among them."""
    tasks = results.get("group_subtasks", {}).get(task) or [task]
    return [sample | {"key": (t, sample["doc_id"])} for t in tasks for sample in results["samples"].get(t, [])]


def _count(results: dict[str, Any], task: str) -> int:
    return len(_samples(results, task))


def _against(full: dict[str, Any], results: dict[str, Any], task: str, key: str) -> dict[str, Any]:
    """The columns of a row that compare it with the full model."""
    reference = full["results"][task][key]
    return {"relative": results["results"][task][key] / reference if reference else None} | paired(
        _scores(_samples(full, task), key), _scores(_samples(results, task), key)
    )


def _scores(samples: Sequence[dict[str, Any]], key: str) -> dict[Any, float]:
    """Numeric scores by question."""
    metric = key.partition(",")[0]
    return {s["key"]: float(s[metric]) for s in samples if isinstance(s.get(metric), float | int)}


def paired(full: dict[Any, float], pruned: dict[Any, float]) -> dict[str, Any]:
    """Mean difference of scores over the questions that both answered, with its 95 % bootstrap interval.

    The harness's own `--baseline` does not serve: it reads its two sides by different rules, so that equal runs differ.

    Args:
        full: the full model's scores by question.
        pruned: likewise.

    Returns:
        `n_paired`, `difference`, `low` and `high`; None for the latter three without a common question.
    """
    common = sorted(full.keys() & pruned.keys(), key=str)
    differences = np.array([pruned[k] - full[k] for k in common])
    if len(differences) == 0:
        return {"n_paired": 0, "difference": None, "low": None, "high": None}
    low, high = bootstrap_interval(differences)
    return {"n_paired": len(differences), "difference": float(differences.mean()), "low": low, "high": high}


def primary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of each task's metric in `PRIMARY`, or of its first one."""
    first: dict[str, str] = {}
    for row in rows:
        metric = PRIMARY.get(row["task"], row["metric"])
        if row["metric"] == metric:
            first.setdefault(row["task"], metric)
    return [row for row in rows if first.get(row["task"]) == row["metric"]]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Settings by tasks: the value of the primary metric, and in brackets its share of the full model's."""
    chosen = primary(rows)
    metrics = {row["task"]: row["metric"] for row in chosen}
    tasks = list(dict.fromkeys(row["task"] for row in chosen))
    by_cell = {(row["policy"], row["keep"], row["task"]): row for row in chosen}
    lines = []
    for policy, keep in dict.fromkeys((row["policy"], row["keep"]) for row in chosen):
        of_setting = [by_cell.get((policy, keep, task)) for task in tasks]
        kept = next(row for row in of_setting if row is not None)["kept_tokens"] if policy != FULL else None
        title = FULL if policy == FULL else f"`{policy}` {keep}"
        lines.append([title, f"{kept:.0f}" if kept else "", *map(_value, of_setting)])
    heads = ["", "kept", *(f"{task} ({metrics[task]})" for task in tasks)]
    return "\n".join(markdown_table(heads, "l" + "r" * (1 + len(tasks)), lines)) + "\n"


def _value(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    relative = None if row["policy"] == FULL else row.get("relative")
    return f"{row['value']:.4g}" + ("" if relative is None else f" ({relative:.1%})")


def write(rows: Sequence[dict[str, Any]], out: Path, machine: dict[str, Any]) -> None:
    """Write `results.csv`, `results.json` (`{"machine", "rows"}`) and `results.md` to a folder."""
    write_json(out / "results.json", {"machine": machine, "rows": rows})
    write_csv(out / "results.csv", rows)
    (out / "results.md").write_text(markdown(rows))
