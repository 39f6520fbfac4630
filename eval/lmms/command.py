"""`tokenprune eval`: runs the grid, writes and prints its tables."""

from __future__ import annotations

import argparse
import os
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table

from .. import minivlm, published
from ..errors import CommandError
from ..files import check_folder
from ..machine import describe
from ..runs import check_command
from ..setting import FULL, settings_grid
from . import EMBEDDED_TASKS, grid, grid_report
from .collected import collect
from .grid import NoHarness

__all__ = ["NoHarness", "run"]


def run(options: argparse.Namespace, console: Console) -> None:
    """Run the command.

    Raises:
        CommandError: the tasks are those of the other embedded models.
        NoHarness, ValueError, UnsupportedModelError, OSError: as `grid.check`; ValueError also for published figures
            that do not exist.
    """
    if minivlm.reads_pages(options.model) and any(task.startswith(EMBEDDED_TASKS) for task in options.tasks):
        raise CommandError(
            f"--tasks {EMBEDDED_TASKS}: these ask about scenes, about which {options.model} answers no questions; "
            "tokenprune bench --model qwen-pages asks what it can answer"
        )
    figures = published.load(options.compare) if options.compare else None
    plan = grid.Plan(
        model=options.model,
        settings=settings_grid(options.policy, options.keep, options.positions, full=not options.no_full),
        tasks=tuple(options.tasks),
        backend=options.backend,
        arguments=options.model_args,
        limit=options.limit,
        batch_size=options.batch_size,
        device=options.device,
        generation=options.gen_kwargs,
        include=options.include_path,
    )
    check_folder(options.out, "--out", grid_report.FILES)
    check_command(options.out, "eval")
    first = int(os.environ.get("RANK", 0)) == 0
    note = (lambda text: console.print(text, highlight=False, markup=False)) if first else (lambda text: None)
    grid.run(plan, options.out, note)
    if not first:
        return
    cells, left_out = collect(plan, options.out)
    rows = grid_report.rows(cells)
    grid_report.write(rows, options.out, describe(options.device))
    console.width = max(console.width, 80)  # narrower, figures would be cut
    console.print(tables(rows))
    if figures is not None:
        own = [row for row in rows if (row["model"], row["positions"]) == (plan.model, options.positions)]
        console.print(published.table(figures, own))
    if left_out:
        note(f"{left_out} cells in {options.out} are left out: another --limit, --gen-kwargs, device or version")
    console.print(f"written: {options.out}/results.csv, .json, .md", highlight=False, soft_wrap=True)


def tables(rows: list[dict[str, Any]]) -> Group:
    """A table per model and task: its primary metric, with the paired difference to the full model."""
    runs = grid_report.by_run(grid_report.primary(rows))
    out = []
    for name, of_run in runs.items():
        for task in dict.fromkeys(row["task"] for row in of_run):
            of_task = [row for row in of_run if row["task"] == task]
            title = f"{name}, " * (len(runs) > 1) + f"{task}: {of_task[0]['metric']}, n={of_task[0]['n']}"
            caption = "kept: visual tokens, a mean over decoder layers"
            table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption=caption)
            for head in ("", "value", "of full", "difference to full, 95 %", "kept", "per s"):
                table.add_column(head, justify="right" if head else "left", no_wrap=bool(head), overflow="fold")
            for row in of_task:
                table.add_row(*_line(row))
            out.append(table)
    return Group(*out)


def _line(row: dict[str, Any]) -> list[str]:
    speed = f"{row['samples_per_second']:.2f}" if row["samples_per_second"] else ""
    if row["policy"] == FULL:
        return [FULL, f"{row['value']:.4g}", "", "", "", speed]
    relative, difference = row.get("relative"), row.get("difference")
    return [
        grid_report.setting_name(row),
        f"{row['value']:.4g}",
        "" if relative is None else f"{relative:.1%}",
        "" if difference is None else f"{difference:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
        f"{row['kept_tokens']:.0f}" if row["kept_tokens"] else "",
        speed,
    ]
