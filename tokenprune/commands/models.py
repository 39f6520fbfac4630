"""`tokenprune models`."""

from __future__ import annotations

import argparse

from ..patches import supported_model_types
from ..patches.families.registry import family_by_type
from . import arguments


def add(commands: arguments.Commands) -> None:
    """Add the command."""
    models = commands.add_parser("models", help="list the supported model types")
    models.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title="supported model types", box=box.SIMPLE)
    for name in ("model type", "takes", "position ids", "default keep"):
        table.add_column(name, no_wrap=True)
    for name in supported_model_types():
        family = family_by_type(name)
        kinds = ", ".join(f"{kind}s" for kind in family.kinds)
        positions = "1-D" if family.positions == "1d" else "mRoPE"
        table.add_row(name, kinds, positions, f"{family.default_keep:g}")
    Console().print(table)
