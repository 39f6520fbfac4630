"""`tokenprune bench`: runs the cells, writes and prints the tables."""

from __future__ import annotations

import argparse
import ast
import shlex
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..files import STDOUT, check_file, check_folder, console_beside, write_json
from ..machine import describe
from ..progress import progress_bar
from ..runs import check_command
from ..setting import FULL, format_keep
from . import ALL_TASKS, costs, report, run, tasks, tasks_of
from .collected import Setting, collect
from .tasks import ALL

_SHORT = {
    "attribute": "attr.",
    "existence": "exist.",
    "counting": "count",
    "spatial": "spat.",
    "heading": "head.",
    "caption": "capt.",
}


def execute(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Run the benchmark; returns its rows."""
    check_folder(options.out, "--out", report.FILES)
    check_command(options.out, "bench")
    check_file(options.json, "--json")
    console = console_beside(options.json, console)
    note = lambda text: console.print(text, highlight=False, soft_wrap=True)
    tasks.check(options.model, options.samples, options.split, _tasks(options))
    settings = run.settings(options.policy, options.keep, options.positions)
    plan = run.Plan(
        options.model,
        run.allowed(options.model, settings, note),
        _tasks(options),
        options.samples,
        options.split,
        options.against,
    )
    cells, command = plan.cells(), _command(options, plan)
    with progress_bar(console) as progress:
        task = progress.add_task(f"asking {plan.model}", total=len(cells) * plan.samples)
        run.run(plan, options.out, command, lambda count: progress.advance(task, count), note)
        if options.flops:
            costs.add_flops(plan, options.out, options.flops, note)
    found = collect(plan, options.out)
    rows = report.rows(found, plan.against)
    made = {
        "command": command,
        "commands": list(dict.fromkeys([*found.commands, command])),
        "machine": describe("cpu"),
        "identity": {k: v for k, v in cells[0].identity().items() if k not in run.OF_A_SETTING},
        "models": {model: run.weights(model) for model in dict.fromkeys(row["model"] for row in rows)},
    }
    written = report.write(rows, options.out, made)
    wide = Console(width=max(console.width, 120), file=console.file)  # narrower, figures would be cut
    for table in tables(rows):
        wide.print(table)
    if found.left_out:
        note(f"{found.left_out} cells in {options.out} are left out: other questions, versions or weights")
    note(f"written: {options.out}/{', '.join(written)}")
    if options.json is not None:
        write_json(options.json, {**made, "rows": rows})
        if options.json != STDOUT:
            note(f"written: {options.json}")
    return rows


def _tasks(options: argparse.Namespace) -> tuple[str, ...]:
    """The tasks that are asked for; None: all of the model's."""
    return tuple(options.tasks or tasks_of(options.model))


def _command(options: argparse.Namespace, plan: run.Plan) -> str:
    """The command line that does this again."""
    listed = ",".join
    return (
        f"tokenprune bench --model {plan.model} --policy {shlex.quote(listed(options.policy))} "
        f"--keep {listed(format_keep(keep) for keep in options.keep)} --positions {listed(options.positions)} "
        f"--tasks {listed(plan.tasks)} --samples {plan.samples}"
        + f" --split {plan.split}" * (plan.split != "test")
        + f" --flops {options.flops}" * bool(options.flops)
        + f" --against {shlex.quote(plan.against or '')}" * (plan.against is not None)
    )


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Per model, keep ratio and positions: policies by tasks, and the paired difference to random tokens."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    out = []
    for model in models:
        of_model = [row for row in rows if row["model"] == model]
        pruned = [row for row in of_model if row["policy"] != FULL]
        for keep, positions in dict.fromkeys((s.keep, s.positions) for s in map(Setting.of, pruned)):
            shown = [
                row
                for row in of_model
                if row["policy"] == FULL or (repr(row["keep"]), row["positions"]) == (keep, positions)
            ]
            budget = format_keep(ast.literal_eval(keep))
            title = f"{model}, " * (len(models) > 1) + f"keep {budget}, {positions} positions"
            out.append(_table(shown, title))
    return out


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    """A table of rows of one model, keep ratio and positions, the full model's among them."""
    tasks = [task for task in (*ALL_TASKS, ALL) if any(row["task"] == task for row in rows)]
    n = next(row["n"] for row in rows if row["task"] != ALL)
    table = Table(
        title=f"{title}: exact match in %, {n} questions per task",
        caption="kept: visual tokens, a mean over decoder layers; over random: by question, with its 95 % interval",
        box=box.SIMPLE_HEAD,
        padding=0,
        title_justify="left",
    )
    for name in ("", "kept", *tasks, "over random"):
        head = f"{_SHORT.get(name, name)} "
        table.add_column(head, justify="right" if name else "left", no_wrap=bool(name), overflow="fold")
    for setting in report.ranked(rows):
        by_task = {row["task"]: row for row in rows if Setting.of(row) == setting}
        last = by_task.get(ALL) or list(by_task.values())[-1]
        table.add_row(
            f"{setting.policy} ",
            f"{last['visual_tokens']:.0f} ",
            *(f"{100 * by_task[task]['exact_match']:.0f} " if task in by_task else "" for task in tasks),
            report.gain(last, "random"),
            style="bold" if setting.policy == FULL else None,
        )
    return table
