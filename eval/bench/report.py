"""Rows, tables and figures of a benchmark."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import markdown_table, write_csv, write_json
from ..intervals import bootstrap_interval
from ..machine import device_and_threads
from ..setting import FULL, format_keep
from . import ALL_TASKS
from .collected import Collected, Setting
from .run import BASELINES
from .tasks import ALL

Rows = Sequence[dict[str, Any]]


def rows(found: Collected, against: str | None = None) -> list[dict[str, Any]]:
    """One row per setting and task, and for settings that were asked all of their model's tasks one over all.

    Args:
        found: results that go together.
        against: a policy that every other is compared with, besides the baselines; None: none.

    Returns:
        Rows with `model`, `policy` (`full` for the full model), `keep`, `positions`, `task`, `exact_match`,
        `n`, its 95 % interval `low` and `high`, and `visual_tokens` (mean per question, over decoder layers). Where
        they were counted, also `flops` (mean of those questions of which they were, vision encoder and prefill). Of
        `existence` also `precision`, `recall` and `f1` of the answer yes. Against each of `BASELINES` at the
        same keep ratio and positions, paired by question: the mean difference `vs_NAME` and its interval `vs_NAME_low`,
        `vs_NAME_high`; likewise `vs_full`, and against the policy given. What was not asked the same questions is not
        compared.
    """
    out = []
    for setting in found.settings():
        tasks = found.tasks(setting.model)
        if setting in found.cells:
            out += _of_setting(setting, found, tasks, against)
            continue
        earlier = found.rows[setting]
        asked = {row["task"] for row in earlier} - {ALL}
        out += [row for row in earlier if row["task"] != ALL or asked == set(tasks)]
    return out


def _of_setting(setting: Setting, found: Collected, tasks: list[str], against: str | None) -> list[dict[str, Any]]:
    """The rows of one setting whose cells are there."""
    cells, out = found.cells[setting], []
    others = {} if setting.policy == FULL else _compared_with(setting, found, against)
    for task in (*tasks, ALL):
        asked = tasks if task == ALL else [task]
        if not cells.keys() >= set(asked):
            continue
        right = _per_question(cells, asked, "right")
        low, high = bootstrap_interval(right)
        row = found.names[setting] | {
            "task": task,
            "exact_match": float(right.mean()),
            "n": len(right),
            "low": low,
            "high": high,
            "visual_tokens": float(_per_question(cells, asked, "kept").mean()),
        }
        if all("flops" in cells[each] for each in asked):
            # Tasks count alike, of however many questions FLOPs were counted.
            row["flops"] = float(np.mean([_per_question(cells, [each], "flops").mean() for each in asked]))
        if task == "existence":
            row |= yes_no(cells[task]["texts"], cells[task]["answers"])
        for name, other in others.items():
            if other != setting and found.cells.get(other, {}).keys() >= set(asked):
                row |= _paired(name, right - _per_question(found.cells[other], asked, "right"))
        out.append(row)
    return out


def _compared_with(setting: Setting, found: Collected, against: str | None) -> dict[str, Setting]:
    """By name, the settings that a setting is compared with."""
    full = [each for each in found.cells if (each.model, each.policy) == (setting.model, FULL)]
    others = dict.fromkeys([FULL], full[0]) if full else {}
    for name in BASELINES:
        positions = "original" if name == "downsample" else setting.positions
        others[name] = setting._replace(policy=name, positions=positions)
    if against is not None:
        others[against] = setting._replace(policy=against)
    return others


def _per_question(cells: dict[str, dict[str, Any]], tasks: Sequence[str], name: str) -> np.ndarray:
    """A value of every question of tasks, (n,) float64."""
    return np.concatenate([np.array(cells[task][name], float) for task in tasks])


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
    """Settings by tasks, exact match in %, and the difference of each to random tokens and downsampled images; a table
    per model.

    Args:
        rows: of `rows`.
        run: how they were made: `commands`, `machine`, `identity` and `models`, the weights by model.
    """
    by_model = {model: [row for row in rows if row["model"] == model] for model in _models(rows)}
    parts = ["\n".join(_head(of_model, run) + _table(of_model)) for of_model in by_model.values()]
    return "\n\n".join(parts) + "\n"


def _models(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows))


def _head(rows: Rows, run: dict[str, Any]) -> list[str]:
    identity, machine, model = run["identity"], run["machine"], rows[0]["model"]
    return [
        f"Exact match in %, {rows[0]['n']} questions per task ({model}). In brackets the 95 % bootstrap "
        "interval; *over random*: the difference by question, in points, with its interval; *kept*: visual tokens per "
        "question, a mean over decoder layers and tasks"
        + ("; *MFLOP*: vision encoder and prefill of a question." if _has_flops(rows) else "."),
        "",
        f"Run: {', '.join(f'`{command}`' for command in run['commands'])}, tokenprune {identity['tokenprune']}, "
        f"transformers {identity['transformers']}, torch {machine['torch']}, {device_and_threads(machine)}, "
        f"weights {run['models'][model]}.",
        "",
    ]


def _table(rows: Rows) -> list[str]:
    tasks = [task for task in (*ALL_TASKS, ALL) if any(row["task"] == task for row in rows)]
    compared = {key[3:] for row in rows for key in row if key.startswith("vs_") and not key.endswith(("_low", "_high"))}
    others = ["random", "downsample", *sorted(compared - {FULL, *BASELINES})]
    lines, has_flops = [], _has_flops(rows)
    for setting in ranked(rows):
        by_task = {row["task"]: row for row in rows if Setting.of(row) == setting}
        row = by_task.get(ALL) or next(iter(by_task.values()))
        full = row["policy"] == FULL
        lines.append(
            [
                FULL if full else f"`{row['policy']}`",
                "" if full else format_keep(row["keep"]),
                "" if full or row["policy"] == "downsample" else row["positions"],
                f"{row['visual_tokens']:.0f}",
                *([f"{row['flops'] / 1e6:.0f}" if "flops" in row else ""] if has_flops else []),
                *(_percent(by_task.get(task)) for task in tasks if task != ALL),
                *([_with_interval(by_task.get(ALL))] if ALL in tasks else []),
                *(gain(by_task.get(ALL, {}), name) for name in others),
            ]
        )
    heads = ["", "keep", "positions", "kept", *["MFLOP"] * has_flops, *tasks, *(f"over {name}" for name in others)]
    return markdown_table(heads, "lrl" + "r" * (len(heads) - 3), lines)


def _has_flops(rows: Rows) -> bool:
    return any("flops" in row for row in rows)


def _percent(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{100 * row['exact_match']:.0f}"


def _with_interval(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"**{100 * row['exact_match']:.1f}** [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def ranked(rows: Rows) -> list[Setting]:
    """Settings of rows: the full model, then by keep ratio and positions the best policy first, and those last that
    were not asked all tasks."""
    means = {Setting.of(row): -1.0 for row in rows}
    means |= {Setting.of(row): row["exact_match"] for row in rows if row["task"] == ALL}
    budgets = list(dict.fromkeys((s.keep, s.positions) for s in means))
    return sorted(means, key=lambda s: (s.policy != FULL, budgets.index((s.keep, s.positions)), -means[s]))


def gain(row: dict[str, Any], name: str) -> str:
    """A paired difference in points with its interval; empty if the row has none."""
    if f"vs_{name}" not in row:
        return ""
    value, low, high = (100 * row[f"vs_{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


#: Files that `write` writes.
FILES = ("results.json", "results.csv", "results.md", "curves.png", "tasks.png", "flops.png")


def write(rows: Rows, out: Path, run: dict[str, Any]) -> list[str]:
    """Write `results.csv`, `results.json` (`run` and the rows), `results.md`, and pictures of the run's model,
    `curves.png` and `tasks.png`, and `flops.png` where FLOPs were counted. With rows of several models, also
    `curves-MODEL.png` and so on of each.

    Returns:
        The names of these files.
    """
    from . import plots

    write_json(out / "results.json", {**run, "rows": rows})
    write_csv(out / "results.csv", rows)
    (out / "results.md").write_text(markdown(rows, run))
    written, models = list(FILES[:3]), _models(rows)
    pictures = {"": run["identity"]["model"]} | ({f"-{model}": model for model in models} if len(models) > 1 else {})
    for ending, model in pictures.items():
        of_model = [row for row in rows if row["model"] == model]
        drawn: dict[str, Callable[[Rows, Path], None]] = {"curves": plots.curves, "tasks": plots.tasks}
        if _has_flops(of_model):
            drawn["flops"] = functools.partial(plots.curves, cost="flops")
        for name, draw in drawn.items():
            draw(of_model, out / f"{name}{ending}.png")
            written.append(f"{name}{ending}.png")
    return written
