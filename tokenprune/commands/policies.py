"""`tokenprune policies`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ..policies import Policy, registry


def add(commands: argparse._SubParsersAction) -> None:
    policies = commands.add_parser("policies", help="list the policies, their options and their papers")
    policies.add_argument("--markdown", action="store_true", help="the table of the documentation")
    policies.set_defaults(run=_run)


def _defaults(cls: type[Policy]) -> list[str]:
    made: Any = cls()
    return [f"{f.name}={getattr(made, f.name)!r}" for f in dataclasses.fields(cls) if f.init]


def _acts(cls: type[Policy]) -> str:
    """Its stages, the one that it goes on in included."""
    deeper = cls().deeper()
    return cls.stage if deeper is None else f"{cls.stage}, {deeper.stage}"


def _link(paper: str) -> str:
    name, _, number = paper.rpartition("arXiv:")
    return f"[{number}](https://arxiv.org/abs/{number})" if name else paper


def markdown() -> str:
    """The table of policies: where they act, their defaults, source and deviations."""
    lines = ["| policy | acts | reads | defaults | paper | differs from it |", "|---|---|---|---|---|---|"]
    for name, cls in registry().items():
        reads = ", ".join(need.replace("_", " ") for need in sorted(cls.needs)) or "features"
        defaults = ", ".join(f"`{d}`" for d in _defaults(cls)) or "-"
        where = f"{_acts(cls)}{', finds its own count' * cls.adaptive}"
        lines.append(f"| `{name}` | {where} | {reads} | {defaults} | {_link(cls.paper)} | {cls.deviates or '-'} |")
    return "\n".join(lines) + "\n"


def summary() -> str:
    """The table of policies in the README: what they keep."""
    lines = ["| policy | acts | what it keeps | paper |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {_acts(cls)} | {cls.keeps} | {_link(cls.paper)} |" for name, cls in registry().items()]
    return "\n".join(lines) + "\n"


def _run(args: argparse.Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if args.markdown:
        console.print(markdown(), markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(title="policies", box=box.SIMPLE, padding=0, show_lines=True)
    for name in ("name ", "stage ", "needs ", "options and defaults ", "arXiv"):
        table.add_column(name, no_wrap="options" not in name, overflow="fold")
    for name, cls in registry().items():
        needs = "\n".join(sorted(cls.needs))
        stage, paper = _acts(cls).replace(", ", "\n"), cls.paper.rpartition("arXiv:")[2]
        table.add_row(f"{name} ", f"{stage} ", needs or "-", "\n".join(_defaults(cls)) or "-", paper)
    console.print(table)
