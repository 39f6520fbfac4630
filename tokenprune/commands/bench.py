"""`tokenprune bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..eval import minivlm
from ..policies import registry
from . import arguments

_TASKS = ("attribute", "existence", "counting", "spatial", "letter", "word", "table", "pair", "small")


def add(commands: argparse._SubParsersAction) -> None:
    bench = commands.add_parser(
        "bench",
        help="compare policies on the embedded models, offline",
        description="Ask an embedded model held-out questions of several tasks, full and pruned, and write exact "
        "match with 95 % bootstrap intervals, and paired differences to random tokens, a regular grid of tokens "
        "and smaller pictures. Goes on where it was interrupted.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    bench.add_argument("--model", choices=minivlm.NAMES, default="llava", help="which embedded model")
    bench.add_argument(
        "--policy",
        type=_policies,
        default=",".join(registry()),
        metavar="A,B",
        help=f"policies, of: {', '.join(registry())}; A+B composes; random, grid and downsample are run in any case",
    )
    bench.add_argument(
        "--keep", type=arguments.keeps, default="0.25,0.1", metavar="K,K", help="ratios or whole numbers of tokens"
    )
    bench.add_argument(
        "--positions",
        type=_choices(arguments.POSITIONS),
        default="original",
        metavar="P,P",
        help=f"of surviving tokens: {', '.join(arguments.POSITIONS)}",
    )
    bench.add_argument(
        "--tasks", type=_choices(_TASKS), default=",".join(_TASKS), metavar="T,T", help="tasks, of the default ones"
    )
    bench.add_argument("--samples", type=arguments.count, default=300, metavar="N", help="questions per task")
    bench.add_argument(
        "--split", choices=("test", "validation"), default="test", help="scenes; choose options on validation ones"
    )
    bench.add_argument(
        "--against",
        choices=tuple(registry()),
        metavar="NAME",
        help="also compare every policy with this one, by question",
    )
    bench.add_argument("--out", type=Path, default=Path("out/bench"), metavar="DIR", help="folder of results")
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    bench.set_defaults(run=_run)


def _policies(text: str) -> list[str]:
    """Policies by comma; the baseline that is none may be named among them."""
    names = [name for name in arguments.names(text) if name != "downsample"]
    return arguments.stages(",".join(names)) if names else []


def _choices(accepted: tuple[str, ...]):
    """Some of the accepted values, by comma."""

    def read(text: str) -> list[str]:
        chosen = list(dict.fromkeys(arguments.names(text)))
        for name in chosen:
            if name not in accepted:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(accepted)}")
        return chosen

    return read


def _run(args: argparse.Namespace) -> None:
    from rich.console import Console

    arguments.quiet_transformers()
    from ..eval.bench.command import execute

    try:
        execute(args, Console())
    except KeyboardInterrupt:
        raise SystemExit(f"tokenprune bench: interrupted; the same command goes on from {args.out}") from None
