"""`tokenprune tune`."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import arguments


def add(commands: arguments.Commands) -> None:
    """Add the command."""
    tune = arguments.add_command(
        commands,
        "tune",
        help="find the cheapest setting whose answers stay, on your model and your prompts",
        description="Answer prompts with all tokens, rank policies on one half of them, and test the best ones on the "
        "other: the recipe that is written holds the cheapest setting whose loss is certified to be within the "
        "tolerance. No right answers are needed. Goes on where it was interrupted.",
    )
    arguments.add_model(tune, "checkpoint to tune")
    tune.add_argument(
        "--data",
        required=True,
        metavar="SOURCE",
        help="JSON lines with question or messages, image or images, and answer if it is known; a folder of pictures; "
        "a Hugging Face dataset on disk; or lmms:TASK, a task or group of lmms-eval",
    )
    tune.add_argument("--question", metavar="TEXT", help="about each picture of a folder; default: several in turn")
    tune.add_argument("--samples", type=arguments.count, metavar="N", help="so many of the prompts at random")
    tune.add_argument("--tolerance", type=_share, default="0.02", metavar="T", help="largest mean loss")
    tune.add_argument(
        "--confidence", type=_share, default="0.95", metavar="C", help="with which the loss is within the tolerance"
    )
    tune.add_argument(
        "--metric",
        choices=("answer", "tokens", "kl", "accuracy"),
        default="answer",
        help="what a prompt loses: whether its answer changes, the share of the answer's tokens that do, the "
        "divergence of the next token, or whether a right answer is lost (with answers in the data)",
    )
    arguments.add_policy(
        tune, default=None, note="; default: several of each kind, and counts that are found for each input"
    )
    tune.add_argument(
        "--keep", type=arguments.keeps, metavar="K,K", help=f"{arguments.KEEP_HELP}; default: from 0.9 to 0.05"
    )
    arguments.add_several_positions(tune)
    tune.add_argument(
        "--cost",
        choices=("time", "flops"),
        default="time",
        help="what is to be small: time to the first token on this machine, or FLOPs of the language model's prefill",
    )
    tune.add_argument(
        "--minutes", type=_minutes, metavar="N", help="after so long no further setting is tried; default: all are"
    )
    tune.add_argument("--batch-size", type=arguments.count, default=16, metavar="N", help="prompts asked together")
    tune.add_argument("--new-tokens", type=arguments.count, default=32, metavar="N", help="length of an answer at most")
    tune.add_argument(
        "--frames", type=arguments.count, default=32, metavar="N", help="of a video, evenly spaced; all if it has fewer"
    )
    tune.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default bfloat16 on a GPU")
    tune.add_argument("--attn", metavar="NAME", help="attention implementation; default transformers' own")
    tune.add_argument("--device", help="default cuda if there is one")
    tune.add_argument("--device-map", metavar="MAP", help="spread the model over devices, as transformers does: auto")
    tune.add_argument("--work", type=Path, metavar="DIR", help="folder of answers; default: beside the recipe")
    tune.add_argument("--plot", type=Path, metavar="FILE", help="also draw loss against cost")
    tune.add_argument("--out", type=Path, default=Path("recipe.json"), metavar="JSON", help="recipe to write")
    tune.set_defaults(run=_run, resumes=True)


def _share(text: str) -> float:
    """A number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number between 0 and 1")
    return value


def _minutes(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _run(args: argparse.Namespace) -> None:
    args.work = args.work or args.out.with_suffix(".tune")
    arguments.quiet_transformers()
    from ..eval.tune.command import run

    run(args, arguments.console(args))
