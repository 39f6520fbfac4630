"""`tokenprune play`."""

from __future__ import annotations

import argparse

from . import arguments, completers


def add(commands: arguments.Commands) -> None:
    """Add the command."""
    play = arguments.add_command(
        commands,
        "play",
        help="a page in the browser: ask about a picture, full and pruned, and see which tokens stay",
        description="Serve a page on this machine: a picture, a question, a policy and a keep ratio; the kept tokens "
        "drawn on the picture, both answers, tokens, milliseconds and KV cache. Needs Gradio: pip install '.[play]'.",
    )
    arguments.add_model(play, "a checkpoint")
    policy = play.add_argument(
        "--policy", default="divprune", metavar="A", help="what is chosen at first; A:OPTION=VALUE, A+B composes"
    )
    completers.complete(policy, completers.policies)
    play.add_argument("--keep", type=_ratio, default="0.25", metavar="K", help="keep ratio at first, 0.02 to 1")
    arguments.add_positions(play)
    play.add_argument("--new-tokens", type=arguments.count, default=32, metavar="N", help="longest answer")
    play.add_argument("--device", help="default cuda if there is one")
    play.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default by device")
    play.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all of this machine")
    play.add_argument("--port", type=arguments.count, metavar="N", help="default the first free one from 7860 up")
    play.add_argument("--share", action="store_true", help="also a public address, through Gradio's servers")
    play.add_argument("--no-browser", action="store_true", help="open no browser")
    play.set_defaults(run=_run)


def _ratio(text: str) -> float:
    """A keep ratio that the slider can stand at."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.02 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no ratio from 0.02 to 1")
    return value


def _run(args: argparse.Namespace) -> None:
    arguments.quiet_transformers()
    from ..eval.play import server

    server.run(args, arguments.console(args))
