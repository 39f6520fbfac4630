"""`tokenprune bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..eval.bench import ALL_TASKS, EASY_VQA, PAGES, TASKS
from ..eval.minivlm import EMBEDDED, NAMES
from . import arguments, completers


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
    bench.add_argument(
        "--model",
        type=lambda name: EMBEDDED[name].name if name in EMBEDDED else name,
        choices=NAMES,
        default="llava",
        help="which embedded model",
    )
    policy = bench.add_argument(
        "--policy",
        type=_policies,
        default="all",
        metavar="A,B",
        help="policies (see `tokenprune policies`), or all; A:OPTION=VALUE sets an option, A+B composes; random, grid "
        "and downsample are run in any case",
    )
    completers.complete(policy, completers.policies)
    bench.add_argument(
        "--keep",
        type=_keeps,
        default="0.25,0.1",
        metavar="K,K",
        help=f"{arguments.KEEP_HELP}; default: as many as a policy finds, for those that find a count of their own",
    )
    arguments.add_several_positions(bench)
    tasks = bench.add_argument(
        "--tasks",
        type=arguments.choices(ALL_TASKS),
        metavar="T,T",
        help=f"{', '.join(TASKS)}; of easy-vqa: {', '.join(EASY_VQA)}; of qwen-pages: {', '.join(PAGES)}; all, if not "
        "given",
    )
    completers.complete(tasks, completers.listed(ALL_TASKS))
    bench.add_argument("--samples", type=arguments.count, default=300, metavar="N", help="questions per task")
    bench.add_argument(
        "--split", choices=("test", "validation"), default="test", help="scenes; choose options on validation ones"
    )
    against = bench.add_argument(
        "--against",
        type=arguments.policy,
        metavar="NAME",
        help="also compare every policy with this one, by question",
    )
    completers.complete(against, completers.policies)
    bench.add_argument(
        "--flops",
        type=arguments.count,
        metavar="N",
        help="also count FLOPs, vision encoder and prefill, of N questions per task, and draw accuracy against them",
    )
    bench.add_argument("--out", type=Path, default=Path("out/bench"), metavar="DIR", help="folder of results")
    arguments.add_json(bench)
    bench.set_defaults(run=_run, resumes=True)


def _policies(text: str) -> list[str]:
    """Policies by comma. `downsample` is left out: here it names the baseline of smaller images, which always runs."""
    from ..policies import registry

    named = arguments.policies(",".join(registry()) if text.strip() == "all" else text)
    return [name for name in named if name.partition(":")[0] != "downsample"]


def _keeps(text: str) -> list[float | int | str | None]:
    """Budgets by comma; `default` is None, which leaves it to the policy."""
    parts = [part.strip() for part in text.split(",")]
    return [keep for part in parts for keep in ([None] if part == "default" else arguments.keeps(part))]


def _run(args: argparse.Namespace) -> None:
    arguments.quiet_transformers()
    from ..eval.bench.command import execute

    execute(args, arguments.console(args))
