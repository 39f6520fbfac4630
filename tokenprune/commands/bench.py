"""`tokenprune bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..eval import minivlm
from ..eval.bench.tasks import TASKS
from ..eval.setting import POSITIONS
from ..policies import registry
from . import arguments


def add(commands: arguments.Commands) -> None:
    """Add the command."""
    bench = arguments.add_command(
        commands,
        "bench",
        help="compare policies on the embedded models, offline",
        description="Ask an embedded model held-out questions of several tasks, full and pruned, and write exact "
        "match with 95 % bootstrap intervals, and paired differences to random tokens, a regular grid of tokens "
        "and smaller pictures. Goes on where it was interrupted.",
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
        type=arguments.choices(POSITIONS),
        default="original",
        metavar="P,P",
        help=f"of surviving tokens: {', '.join(POSITIONS)}",
    )
    bench.add_argument(
        "--tasks",
        type=arguments.choices(TASKS),
        default=",".join(TASKS),
        metavar="T,T",
        help="tasks, of the default ones",
    )
    bench.add_argument("--samples", type=arguments.count, default=300, metavar="N", help="questions per task")
    bench.add_argument(
        "--split", choices=("test", "validation"), default="test", help="scenes; choose options on validation ones"
    )
    bench.add_argument(
        "--against",
        type=arguments.policy,
        metavar="NAME",
        help="also compare every policy with this one, by question",
    )
    bench.add_argument("--out", type=Path, default=Path("out/bench"), metavar="DIR", help="folder of results")
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    bench.set_defaults(run=_run)


def _policies(text: str) -> list[str]:
    """Policies by comma. `downsample` is left out: here it names the baseline of smaller images, which always runs."""
    return [name for name in arguments.policies(text) if name.partition(":")[0] != "downsample"]


def _run(args: argparse.Namespace) -> None:
    from rich.console import Console

    arguments.quiet_transformers()
    from ..eval.bench.command import execute

    try:
        execute(args, Console())
    except KeyboardInterrupt:
        raise SystemExit(f"tokenprune bench: interrupted; the same command goes on from {args.out}") from None
