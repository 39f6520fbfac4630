"""`tokenprune report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import arguments


def add(commands: arguments.Commands) -> None:
    """Add the command."""
    report = arguments.add_command(
        commands,
        "report",
        help="one HTML file with curves, latency and pictures of kept tokens",
        description="Put benchmarks, evaluations, profiles and a gallery of kept tokens into one HTML file that needs "
        "no network.",
    )
    report.add_argument(
        "--bench", type=Path, nargs="+", default=[], metavar="DIR", help="folders that `tokenprune bench` wrote"
    )
    report.add_argument(
        "--eval", type=Path, nargs="+", default=[], metavar="DIR", help="folders that `tokenprune eval` wrote"
    )
    report.add_argument(
        "--profile", type=Path, nargs="+", default=[], metavar="JSON", help="files of `tokenprune profile --json`"
    )
    report.add_argument(
        "--tune", type=Path, nargs="+", default=[], metavar="DIR", help="folders that `tokenprune tune --work` wrote"
    )
    report.add_argument("--no-gallery", action="store_true", help="leave the pictures out")
    arguments.add_model(report, "checkpoint that looks at the gallery's pictures")
    report.add_argument("--image", nargs="+", metavar="FILE_OR_URL", help="the gallery's pictures; default drawn ones")
    report.add_argument("--question", metavar="TEXT", help="what to ask about them; default: to describe the picture")
    arguments.add_policy(report, default=None, note="; those of the gallery, default those evaluated")
    report.add_argument("--keep", type=arguments.keeps, default="0.1", metavar="K", help="in the gallery")
    arguments.add_positions(report)
    report.add_argument("--new-tokens", type=arguments.count, default=24, metavar="N", help="length of its answers")
    report.add_argument("--device", help="default cuda if there is one")
    report.add_argument("--title", default="Visual token pruning", help="of the page")
    report.add_argument("--out", type=Path, default=Path("out/report.html"), metavar="HTML", help="file to write")
    report.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    arguments.quiet_transformers()
    from ..eval import report

    report.run(args, arguments.console(args))
