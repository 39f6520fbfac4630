"""`tokenprune bench`: runs the cells, writes and prints the tables."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..files import write_json
from ..machine import describe
from ..progress import progress_bar
from ..setting import FULL, format_keep
from . import report, run

_SHORT = {"attribute": "attr.", "existence": "exist.", "counting": "count", "spatial": "spat."}
_OF_A_SETTING = ("policy", "keep", "positions", "task")  # of a cell's identity; the rest is the run's


def execute(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Run the benchmark; returns its rows."""
    note = lambda text: console.print(text, highlight=False, soft_wrap=True)
    settings = run.settings(options.policy, options.keep, options.positions)
    plan = run.Plan(
        options.model,
        run.allowed(options.model, settings, note),
        tuple(options.tasks),
        options.samples,
        options.split,
        options.against,
    )
    cells = plan.cells()
    with progress_bar(console) as progress:
        task = progress.add_task(f"asking {plan.model}", total=len(cells) * plan.samples)
        results = run.run(plan, options.out, lambda count: progress.advance(task, count), note)
    rows = report.rows(plan, results)
    made = {
        "command": _command(options, plan),
        "machine": describe("cpu"),
        "identity": {k: v for k, v in cells[0].identity().items() if k not in _OF_A_SETTING},
    }
    report.write(rows, options.out, made)
    wide = Console(width=max(console.width, 112), file=console.file)  # narrower, figures would be cut
    for table in tables(rows):
        wide.print(table)
    console.print(f"written: {options.out}/results.csv, .json, .md, curves.png, tasks.png", soft_wrap=True)
    if options.json is not None:
        write_json(options.json, {**made, "rows": rows})
        console.print(f"written: {options.json}", soft_wrap=True)
    return rows


def _command(options: argparse.Namespace, plan: run.Plan) -> str:
    """The command line that does this again."""
    listed = ",".join
    return (
        f"tokenprune bench --model {plan.model} --policy {shlex.quote(listed(options.policy))} "
        f"--keep {listed(format_keep(keep) for keep in options.keep)} --positions {listed(options.positions)} "
        f"--tasks {listed(plan.tasks)} --samples {plan.samples}"
        + f" --split {plan.split}" * (plan.split != "test")
        + f" --against {shlex.quote(plan.against or '')}" * (plan.against is not None)
    )


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Per keep ratio and positions: policies by tasks, and the paired difference to random tokens."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    full = [row for row in rows if row["policy"] == FULL]
    budgets = dict.fromkeys((row["keep"], row["positions"]) for row in rows if row["policy"] != FULL)
    out = []
    for keep, positions in budgets:
        pruned = [row for row in rows if (row["keep"], row["positions"]) == (keep, positions) and row not in full]
        table = Table(
            title=f"keep {keep:g}, {positions} positions: exact match in %, {full[0]['n']} questions per task",
            caption="kept: visual tokens; over random: by question, with its 95 % interval",
            box=box.SIMPLE_HEAD,
            padding=0,
            title_justify="left",
        )
        for name in ("", "kept", *tasks, "over random"):
            head = f"{_SHORT.get(name, name)} "
            table.add_column(head, justify="right" if name else "left", no_wrap=bool(name), overflow="fold")
        for policy in (FULL, *(name for name, *budget in report.ranked(pruned) if budget == [keep, positions])):
            of_policy = [row for row in full + pruned if row["policy"] == policy]
            table.add_row(
                f"{policy} ",
                f"{of_policy[-1]['visual_tokens']:.0f} ",
                *(f"{100 * row['exact_match']:.0f} " for row in of_policy),
                report.gain(of_policy[-1], "random"),
                style="bold" if policy == FULL else None,
            )
        out.append(table)
    return out
