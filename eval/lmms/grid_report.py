"""Tables of a grid: rows, paired with the full model by question, and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import markdown_table, write_csv, write_json
from ..intervals import bootstrap_interval
from ..setting import FULL, format_keep
from .collected import Run, Stored

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


def rows(cells: Sequence[Stored]) -> list[dict[str, Any]]:
    """One row per setting, task and metric.

    Args:
        cells: finished ones that go together.

    Returns:
        Rows with `model`, `backend`, `arguments`, `policy` (`full` for the full model), `keep`, `positions`, `task`,
        `group` (whether the task is a group of others), `metric`, `value`, `n`; where the full model was run too, with
        the same backend and arguments: `relative` (to its value), and, paired by question, the `difference` of the
        means with its 95 % bootstrap interval `low` and `high` over the `n_paired` questions with a numeric score; and
        per sample `visual_tokens`, `kept_tokens` (a mean over decoder layers) and `select_ms`, and
        `samples_per_second`.
    """
    full = {(cell.run, cell.names["task"]): cell.results for cell in cells if cell.names["policy"] == FULL}
    return [row for cell in cells for row in _of_cell(cell, full.get((cell.run, cell.names["task"])))]


def _of_cell(cell: Stored, full: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The rows of a cell, compared with the full model's results."""
    results, names = cell.results, cell.names
    for task, metrics in results["results"].items():
        for key, value in metrics.items():
            metric, _, filtered = key.partition(",")
            if not isinstance(value, float | int) or metric.endswith(("_stderr", "_clt", "_clustered")) or not filtered:
                continue
            row = {key: names[key] for key in ("model", "backend", "arguments", "policy")} | {
                "keep": None if names["keep"] is None else format_keep(names["keep"]),
                "positions": names["positions"],
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
            yield row


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


def by_run(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by what they are compared within, as text: the model, and its backend and arguments where they differ."""
    runs = list(dict.fromkeys(_run(row) for row in rows))
    several = {model for model, *_ in runs if [each[0] for each in runs].count(model) > 1}
    names = {run: ", ".join(filter(None, run)) if run[0] in several else run[0] for run in runs}
    return {names[run]: [row for row in rows if _run(row) == run] for run in runs}


def _run(row: dict[str, Any]) -> Run:
    return Run(row["model"], row.get("backend", ""), row.get("arguments", ""))


def setting_name(row: dict[str, Any], mark: str = "") -> str:
    """`full`, `divprune 0.25` or `divprune 0.25, compact`, with the policy between marks."""
    if row["policy"] == FULL:
        return FULL
    compact = ", compact" * (row.get("positions") == "compact")
    return f"{mark}{row['policy']}{mark} {row['keep']}{compact}"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Settings by tasks: the value of the primary metric, and in brackets its share of the full model's; with several
    models a table for each, under its name."""
    tables = {name: "\n".join(_table(of_run)) for name, of_run in by_run(primary(rows)).items()}
    if len(tables) == 1:
        return "".join(tables.values()) + "\n"
    return "\n\n".join(f"{name}:\n\n{table}" for name, table in tables.items()) + "\n"


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    metrics = {row["task"]: row["metric"] for row in rows}
    tasks = list(metrics)
    by_setting: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_setting.setdefault(setting_name(row, "`"), {})[row["task"]] = row
    lines = []
    for name, of_setting in by_setting.items():
        row = next(iter(of_setting.values()))
        kept = row["kept_tokens"] if row["policy"] != FULL else None
        lines.append([name, f"{kept:.0f}" if kept else "", *(_value(of_setting.get(task)) for task in tasks)])
    heads = ["", "kept", *(f"{task} ({metrics[task]})" for task in tasks)]
    return markdown_table(heads, "l" + "r" * (1 + len(tasks)), lines)


def _value(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    relative = None if row["policy"] == FULL else row.get("relative")
    return f"{row['value']:.4g}" + ("" if relative is None else f" ({relative:.1%})")


#: Files that `write` writes.
FILES = ("results.json", "results.csv", "results.md")


def write(rows: Sequence[dict[str, Any]], out: Path, machine: dict[str, Any]) -> None:
    """Write `results.csv`, `results.json` (`{"machine", "rows"}`) and `results.md` to a folder."""
    write_json(out / "results.json", {"machine": machine, "rows": rows})
    write_csv(out / "results.csv", rows)
    (out / "results.md").write_text(markdown(rows))
