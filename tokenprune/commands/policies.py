"""`tokenprune policies`."""

from __future__ import annotations

import argparse
import dataclasses

from ..policies import registry


def add(commands: argparse._SubParsersAction) -> None:
    policies = commands.add_parser("policies", help="list the policies, their options and their papers")
    policies.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title="policies", box=box.SIMPLE, padding=0, show_lines=True)
    for name in ("name", "stage", "needs", "options and defaults", "arXiv"):
        table.add_column(name, no_wrap=True)
    for name, cls in registry().items():
        options = "\n".join(f"{f.name}={f.default!r}" for f in dataclasses.fields(cls) if f.init)
        needs = "\n".join(sorted(cls.needs))
        stage, paper = cls.stage.replace(", ", "\n"), cls.paper.rpartition("arXiv:")[2]
        table.add_row(name, stage, needs or "-", options or "-", paper)
    Console().print(table)
