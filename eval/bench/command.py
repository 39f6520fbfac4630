"""`tokenprune bench`: runs the cells, writes and shows the tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..machine import describe
from ..progress import progress_bar
from . import report, run

__all__ = ["execute"]

_SHORT = {"attribute": "attr.", "existence": "exist.", "counting": "count", "spatial": "spat."}


def execute(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """The whole benchmark; returns its rows."""
    say = lambda text: console.print(text, highlight=False, soft_wrap=True)
    plan = run.Plan(
        options.model,
        run.allowed(options.model, run.settings(options.policy, options.keep, options.positions), say),
        tuple(options.tasks),
        options.samples,
        options.split,
        options.against,
    )
    cells = plan.cells()
    with progress_bar(console) as progress:
        asking = progress.add_task(f"asking {plan.model}", total=len(cells) * plan.samples)
        tick = lambda n: progress.advance(asking, n)
        results = run.run(plan, options.out, tick, say)
    found = report.rows(plan, results)
    keeps, given = ",".join(f"{k:g}" for k in options.keep), ",".join
    ran = {
        "command": f"tokenprune bench --model {plan.model} --policy {given(options.policy)} --keep {keeps} "
        f"--positions {given(options.positions)} --tasks {given(plan.tasks)} --samples {plan.samples}"
        + f" --split {plan.split}" * (plan.split != "test")
        + f" --against {plan.against}" * (plan.against is not None),
        "machine": describe("cpu"),
        "identity": {k: v for k, v in cells[0].identity().items() if k not in ("policy", "keep", "positions", "task")},
    }
    report.write(found, options.out, ran)
    wide = Console(width=max(console.width, 112), file=console.file)  # shortened figures help nobody
    for table in tables(found):
        wide.print(table)
    console.print(f"written: {options.out}/results.csv, .json, .md, curves.png, tasks.png", soft_wrap=True)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(report.dumps(found, ran))
        console.print(f"written: {options.json}", soft_wrap=True)
    return found


def tables(found: list[dict[str, Any]]) -> list[Table]:
    """Per budget and positions: policies by tasks, and the paired difference to random."""
    names = list(dict.fromkeys(row["task"] for row in found))
    full = [row for row in found if row["policy"] == "full"]
    made = []
    for keep, positions in dict.fromkeys((row["keep"], row["positions"]) for row in found if row["policy"] != "full"):
        here = [row for row in found if (row["keep"], row["positions"]) == (keep, positions) and row not in full]
        table = Table(
            title=f"keep {keep:g}, {positions} positions: exact match in %, {full[0]['n']} questions per task",
            caption="kept: visual tokens; over random: by question, with its 95 % interval",
            box=box.SIMPLE_HEAD,
            padding=0,
            title_justify="left",
        )
        for name in ("", "kept", *names, "over random"):
            table.add_column(f"{_SHORT.get(name, name)} ", justify="right" if name else "left", no_wrap=True)
        for policy in ("full", *(name for name, *at in report.ranked(here) if at == [keep, positions])):
            some = [row for row in full + here if row["policy"] == policy]
            table.add_row(
                f"{policy} ",
                f"{some[-1]['visual_tokens']:.0f} ",
                *(f"{100 * row['exact_match']:.0f} " for row in some),
                report.gain(some[-1], "random"),
                style="bold" if policy == "full" else None,
            )
        made.append(table)
    return made
