"""`tokenprune` on the command line."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from . import __version__
from .commands import bench, demo, evaluate, models, policies, profile, report, show
from .eval.errors import CommandError


def parser() -> argparse.ArgumentParser:
    """The parser of all commands. Parsed arguments have `run`, which executes the command."""
    main = argparse.ArgumentParser(
        prog="tokenprune", description="Drop visual tokens from vision-language models, without training."
    )
    main.add_argument("--version", action="version", version=f"tokenprune {__version__}")
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (demo, bench, show, profile, evaluate, report, policies, models):
        command.add(commands)
    return main


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: arguments; None: those of the process.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except CommandError as error:
        sys.stderr.write(f"tokenprune {args.command}: {error}\n")
        raise SystemExit(2) from None
