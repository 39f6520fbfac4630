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
    show.add_argument("--image", type=Path, nargs="+", metavar="FILE", help="pictures to ask about")
    show.add_argument(
        "--model",
        default="embedded",
        metavar="PATH_OR_ID",
        help="a checkpoint; `embedded` (LLaVA) and `embedded-qwen` ship with us",
    )
    show.add_argument(
        "--policy",
        type=arguments.policies,
        default="divprune,random",
        metavar="A,B",
        help="policies; A+B composes",
    )
    show.add_argument("--keep", type=arguments.keeps, default="0.1", metavar="K,K", help="ratios or whole numbers")
    arguments.add_positions(show)
    show.add_argument("--question", metavar="TEXT", help="what to ask; default: to describe the picture")
    show.add_argument("--new-tokens", type=arguments.count, default=24, metavar="N", help="length of the answer")
    show.add_argument("--device", help="default cuda if there is one")
    show.add_argument("--out", type=Path, default=Path("out/show.png"), metavar="PNG", help="file to write")
    show.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from rich.console import Console

    arguments.quiet_transformers()
    from ..eval import show

    try:
        show.run(args, Console())
    except (OSError, ValueError) as error:  # no such file or checkpoint, a family that is not supported
        raise SystemExit(f"tokenprune show: {error}") from None
