"""`tokenprune profile`."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
from pathlib import Path

from ..eval.errors import CommandError
from ..eval.profile import CONFIGS
from . import arguments


def add(commands: arguments.Commands) -> None:
    """Add the command."""
    profile = arguments.add_command(
        commands,
        "profile",
        help="what pruning buys on a model and this machine: latency by phase, memory, FLOPs",
        description="Measure vision encoder, selection, prefill, decoding, KV cache, peak memory and FLOPs, full "
        "and pruned in turns within one run, and say whether pruning pays. Weights need not be there: --config "
        "builds a published model's shape with random ones.",
    )
    count = arguments.count
    what = profile.add_mutually_exclusive_group()
    arguments.add_model(what, "a checkpoint", default=None)
    what.add_argument("--config", choices=CONFIGS, default="llava-1.5-7b", help="a published model's shape")
    profile.add_argument("--layers", type=count, metavar="N", help="decoder layers of --config, to fit; default all")
    profile.add_argument(
        "--vision-layers",
        type=count,
        metavar="N",
        help="layers of --config's vision encoder; default in proportion to --layers, or "
        "all with a policy that acts inside it",
    )
    arguments.add_policy(profile, default="divprune")
    profile.add_argument(
        "--keep", type=arguments.keeps, default="0.5,0.25,0.1", metavar="K,K", help=arguments.KEEP_HELP
    )
    profile.add_argument("--batch", type=count, default=1, metavar="N", help="rows")
    profile.add_argument("--image-size", type=count, metavar="PIXELS", help="height and width; default the model's")
    profile.add_argument("--images", type=count, default=1, metavar="N", help="pictures in each row")
    profile.add_argument("--frames", type=count, default=0, metavar="N", help="a video of N frames instead")
    profile.add_argument("--new-tokens", type=count, default=8, metavar="N", help="tokens to generate, 2 at least")
    profile.add_argument(
        "--rounds", type=count, metavar="N", help="repeats to take medians of; default 5, of slow models 3"
    )
    profile.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default by device")
    profile.add_argument("--attn", choices=("sdpa", "eager", "flash_attention_2"), help="attention implementation")
    profile.add_argument("--device", help="default cuda if there is one")
    profile.add_argument(
        "--engine", choices=("transformers", "vllm"), default="transformers",
        help="vllm: throughput and time to first token under load, with our plugin (pip install '.[vllm]')",
    )  # fmt: skip
    profile.add_argument(
        "--concurrency",
        type=arguments.counts,
        metavar="N,N",
        help="clients at a time, of --engine vllm; default 1,8,32",
    )
    profile.add_argument("--requests", type=count, metavar="N", help="of a round, of --engine vllm; default 32")
    profile.add_argument(
        "--batched-tokens",
        type=count,
        metavar="N",
        help="prompt tokens in a step of the engine, of --engine vllm",
    )
    profile.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        help="of --engine vllm; default wall. cpu: seconds that the engine and its clients compute, for a machine that "
        "others use as well",
    )
    arguments.add_json(profile)
    profile.add_argument("--plot", type=Path, metavar="PNG", help="also draw latency by phase and the savings")
    profile.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.engine == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise CommandError("--engine vllm needs vLLM; from a checkout of this repository: pip install '.[vllm]'")
        logging.getLogger("vllm").setLevel(logging.WARNING)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    arguments.quiet_transformers()
    from ..eval.model_names import check_attention
    from ..eval.profile import command, engine

    check_attention(args.attn)
    (engine if args.engine == "vllm" else command).run(args, arguments.console(args))
