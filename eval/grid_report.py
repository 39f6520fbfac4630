"""Tables of a grid: tidy rows, paired with the full model, and Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .cells import write_csv
from .grid import Cell

#: What papers report of tasks that have several metrics; of others the first one.
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
_RESAMPLES = 2000


def rows(cells: Iterable[Cell], out: Path) -> list[dict[str, Any]]:
    """One row per setting, task and metric.

    Returns:
        Rows with `model`, `policy` (`full` for the stock model), `keep`, `task`, `group` (whether it sums up
        others), `metric`, `value`, `n`;
        where the full model was run too: `relative` (to its value), and, paired by question, the
        `difference` of the means with its 95 % bootstrap interval `low` and `high` over the `n_paired`
        questions with a numeric score; and `visual_tokens`, `kept_tokens`, `select_ms` per sample and
        `samples_per_second`.
    """
    read = {(cell.name, cell.task): json.loads(cell.path(out).read_text()) for cell in cells}
    found: list[dict[str, Any]] = []
    for cell in cells:
        results, full = read[cell.name, cell.task], read.get(("full", cell.task))
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
                    "policy": "full" if cell.setting.policy == "none" else cell.setting.policy,
                    "keep": None if cell.setting.policy == "none" else cell.keep,
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
                found.append(row)
    return found


def _samples(results: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """Samples of a task, or of all tasks of a group, each with a name of its own."""
    own = results.get("group_subtasks", {}).get(task) or [task]
    return [sample | {"key": (t, sample["doc_id"])} for t in own for sample in results["samples"].get(t, [])]


def _count(results: dict[str, Any], task: str) -> int:
    return len(_samples(results, task))


def _against(full: dict[str, Any], results: dict[str, Any], task: str, key: str) -> dict[str, Any]:
    whole = full["results"][task][key]
    return {"relative": results["results"][task][key] / whole if whole else None} | paired(
        _scores(_samples(full, task), key), _scores(_samples(results, task), key)
    )


def _scores(samples: Sequence[dict[str, Any]], key: str) -> dict[Any, float]:
    """By question; only numbers are scores."""
    metric = key.partition(",")[0]
    return {s["key"]: float(s[metric]) for s in samples if isinstance(s.get(metric), float | int)}


def paired(full: dict[Any, float], pruned: dict[Any, float]) -> dict[str, Any]:
    """Mean difference over the questions that both answered, joined on the question.

    The harness's own `--baseline` reads its two sides by different rules, so that equal runs differ.
    """
    from scipy import stats

    common = sorted(full.keys() & pruned.keys(), key=str)
    differences = np.array([pruned[k] - full[k] for k in common])
    if len(differences) == 0:
        return {"n_paired": 0, "difference": None, "low": None, "high": None}
    mean = float(differences.mean())
    if np.ptp(differences) == 0:  # nothing to resample
        return {"n_paired": len(differences), "difference": mean, "low": mean, "high": mean}
    interval = stats.bootstrap(
        (differences,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return {"n_paired": len(differences), "difference": mean, "low": float(interval.low), "high": float(interval.high)}


def primary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the metric that stands for its task."""
    first: dict[str, str] = {}
    for row in rows:
        metric = PRIMARY.get(row["task"], row["metric"])
        if row["metric"] == metric:
            first.setdefault(row["task"], metric)
    return [row for row in rows if first.get(row["task"]) == row["metric"]]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Settings by tasks: the value, and in brackets its share of the full model's."""
    chosen = primary(rows)
    tasks = list(dict.fromkeys(row["task"] for row in chosen))
    names = list(dict.fromkeys((row["policy"], row["keep"]) for row in chosen))
    by_place = {(row["policy"], row["keep"], row["task"]): row for row in chosen}
    metrics = [next(row["metric"] for row in chosen if row["task"] == task) for task in tasks]
    lines = [
        f"| | kept | {' | '.join(f'{t} ({m})' for t, m in zip(tasks, metrics, strict=True))} |",
        f"|---|--:|{'--:|' * len(tasks)}",
    ]
    for policy, keep in names:
        some = [by_place[policy, keep, task] for task in tasks if (policy, keep, task) in by_place]
        kept = some[0]["kept_tokens"] if policy != "full" else None
        cells = []
        for task in tasks:
            row = by_place.get((policy, keep, task))
            share = (
                "" if row is None or policy == "full" or row.get("relative") is None else f" ({row['relative']:.1%})"
            )
            cells.append("" if row is None else f"{row['value']:.4g}{share}")
        title = "full" if policy == "full" else f"`{policy}` {keep}"
        lines.append(f"| {title} | {'' if not kept else f'{kept:.0f}'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(rows: Sequence[dict[str, Any]], out: Path, machine: dict[str, Any]) -> None:
    """`results.csv`, `results.json` (`{"machine", "rows"}`) and `results.md`."""
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "results.csv", rows)
    (out / "results.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    (out / "results.md").write_text(markdown(rows))
