"""`tokenprune demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import arguments


def add(commands: arguments.Commands) -> None:
    """Add the command."""
    demo = arguments.add_command(
        commands,
        "demo",
        help="the embedded model answers questions about pictures, full and pruned",
        description="Ask the embedded miniature LLaVA held-out questions, with all its visual tokens and with "
        "some, and print accuracy, tokens, KV-cache size and prefill time side by side.",
    )
    arguments.add_policy(demo, default="divprune,random")
    demo.add_argument(
        "--keep",
        type=arguments.keeps,
        default="0.5,0.25,0.1",
        metavar="K,K",
        help=arguments.KEEP_HELP,
    )
    arguments.add_positions(demo)
    demo.add_argument("--samples", type=arguments.count, default=600, metavar="N", help="held-out questions to ask")
    demo.add_argument(
        "--out", type=Path, default=Path("out/demo.png"), metavar="PNG", help="picture of what was kept, to write"
    )
    arguments.add_json(demo)
    demo.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    arguments.quiet_transformers()
    from ..eval import demo

    demo.run(args, arguments.console(args))
