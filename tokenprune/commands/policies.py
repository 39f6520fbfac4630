"""`tokenprune policies`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ..eval.files import markdown_table
from ..policies import Policy, registry
from . import arguments


def add(commands: arguments.Commands) -> None:
    """Add the command."""
    policies = commands.add_parser("policies", help="list the policies, their options and their papers")
    policies.add_argument("--markdown", action="store_true", help="the table of the documentation")
    policies.set_defaults(run=_run)


def _defaults(cls: type[Policy]) -> list[str]:
    """The options and their defaults, as `name=value`."""
    made: Any = cls()
    return [f"{f.name}={getattr(made, f.name)!r}" for f in dataclasses.fields(cls) if f.init]


def _acts(cls: type[Policy]) -> str:
    """The stages that a policy acts at, by comma, with that of its follow-up in the decoder."""
    policy = cls()
    follow_up = policy.decoder_follow_up()
    return ", ".join([*policy.stages, *(() if follow_up is None else follow_up.stages)])


def _link(paper: str) -> str:
    """A link to arXiv in Markdown, or the text as it is."""
    name, _, number = paper.rpartition("arXiv:")
    return f"[{number}](https://arxiv.org/abs/{number})" if name else paper


def markdown() -> str:
    """The table of docs/policies.md: stages, inputs, defaults, paper and deviations of each policy."""
    heads = ("policy", "acts", "reads", "defaults", "paper", "differs from it")
    rows = []
    for name, cls in registry().items():
        reads = ", ".join(need.replace("_", " ") for need in sorted(cls.needs)) or "features"
        defaults = ", ".join(f"`{default}`" for default in _defaults(cls)) or "-"
        acts = f"{_acts(cls)}{', finds its own count' * cls.adaptive}"
        rows.append((f"`{name}`", acts, reads, defaults, _link(cls.paper), cls.deviates or "-"))
    return "\n".join(markdown_table(heads, "l" * len(heads), rows)) + "\n"


def summary() -> str:
    """The table of the README: stages, what is kept, and paper of each policy."""
    heads = ("policy", "acts", "what it keeps", "paper")
    rows = [(f"`{name}`", _acts(cls), cls.keeps, _link(cls.paper)) for name, cls in registry().items()]
    return "\n".join(markdown_table(heads, "l" * len(heads), rows)) + "\n"


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
