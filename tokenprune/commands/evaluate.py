"""`tokenprune eval`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..eval.lmms import EMBEDDED_TASKS
from . import arguments


def add(commands: arguments.Commands) -> None:
    """Add the command."""
    evaluate = arguments.add_command(
        commands,
        "eval",
        help="benchmarks of lmms-eval, full and pruned, as a grid of policies and budgets",
        description="Run tasks of lmms-eval on a checkpoint, full and pruned, and write one table: accuracy, relative "
        "to the full model and paired with it by question, tokens kept and throughput. Goes on where it was "
        "interrupted. Under `torchrun --nproc-per-node N -m tokenprune` or `accelerate launch -m tokenprune` questions "
        "are shared among processes. It needs lmms-eval: pip install '.[eval]' in a checkout of this repository.",
    )
    arguments.add_model(evaluate, "a checkpoint")
    arguments.add_policy(evaluate, default="divprune")
    evaluate.add_argument("--keep", type=arguments.keeps, default="0.25,0.1", metavar="K,K", help=arguments.KEEP_HELP)
    arguments.add_positions(evaluate)
    evaluate.add_argument(
        "--tasks",
        type=arguments.names,
        default=EMBEDDED_TASKS,
        metavar="T,T",
        help="tasks or groups of the harness",
    )
    evaluate.add_argument("--include-path", metavar="DIR", help="a folder with tasks of your own")
    evaluate.add_argument(
        "--backend", default="tokenprune_hf", metavar="NAME", help="wrapper: ours, or tokenprune_llava_hf, ..."
    )
    evaluate.add_argument("--model-args", default="", metavar="A=B,C=D", help="more arguments of the wrapper")
    evaluate.add_argument("--gen-kwargs", metavar="A=B,C=D", help="generation arguments, over the tasks' own")
    evaluate.add_argument("--limit", type=arguments.count, metavar="N", help="questions per task; default all")
    evaluate.add_argument("--batch-size", type=arguments.count, default=1, metavar="N", help="questions at a time")
    evaluate.add_argument("--device", help="default cuda if there is one")
    evaluate.add_argument("--no-full", action="store_true", help="leave the full model out")
    evaluate.add_argument("--out", type=Path, default=Path("out/eval"), metavar="DIR", help="folder of results")
    evaluate.add_argument(
        "--compare", metavar="METHOD/MODEL", help="print published figures beside ours, as divprune/llava-1.5-7b"
    )
    evaluate.set_defaults(run=_run, resumes=True)


def _run(args: argparse.Namespace) -> None:
    arguments.quiet_transformers()
    from ..eval.lmms import command

    command.run(args, arguments.console(args))
