"""`tokenprune show`."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import arguments


def add(commands: arguments.Commands) -> None:
    """Add the command."""
    show = arguments.add_command(
        commands,
        "show",
        help="a picture of the visual tokens that policies keep",
        description="Ask a model about pictures, full and pruned, and draw what each policy kept, with the answers. "
        "Without --image: pictures that the embedded model knows how to read.",
    )
    show.add_argument("--image", nargs="+", metavar="FILE_OR_URL", help="pictures to ask about")
    arguments.add_model(show, "a checkpoint")
    arguments.add_policy(show, default="divprune,random")
    show.add_argument("--keep", type=arguments.keeps, default="0.1", metavar="K,K", help=arguments.KEEP_HELP)
    arguments.add_positions(show)
    show.add_argument("--question", metavar="TEXT", help="what to ask; default: to describe the picture")
    show.add_argument("--new-tokens", type=arguments.count, default=24, metavar="N", help="length of the answer")
    show.add_argument("--device", help="default cuda if there is one")
    show.add_argument("--out", type=Path, default=Path("out/show.png"), metavar="PNG", help="file to write")
    arguments.add_json(show)
    show.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    arguments.quiet_transformers()
    from ..eval import show

    show.run(args, arguments.console(args))
