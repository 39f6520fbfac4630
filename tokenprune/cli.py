"""`tokenprune` on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .budget import Budget
from .policies import make_policy, registry


def _policies(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("no policy given")
    try:
        for name in names:
            make_policy(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return names


def _keeps(text: str) -> list[float | int]:
    keeps: list[float | int] = []
    for part in text.split(","):
        try:
            value = int(part) if part.strip().lstrip("+-").isdigit() else float(part)
            keeps.append(Budget(value).keep)
        except ValueError as error:
            detail = error if str(error).startswith("keep=") else f"{part!r} is no number"
            raise argparse.ArgumentTypeError(str(detail)) from None
    return keeps


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _demo(args: argparse.Namespace) -> None:
    import transformers
    from rich.console import Console

    from .eval import demo

    transformers.utils.logging.set_verbosity_error()  # its notes on optional packages would bury the table
    transformers.utils.logging.disable_progress_bar()
    demo.run(args.policy, args.keep, args.positions, args.samples, args.out, args.json, Console())


def _profile(args: argparse.Namespace) -> None:
    import transformers
    from rich.console import Console

    from .eval import profile_report

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        profile_report.run(args, Console())
    except (OSError, ValueError) as error:  # no such checkpoint, an input the model does not take
        raise SystemExit(f"tokenprune profile: {error}") from None


def _list_policies(args: argparse.Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title="policies", box=box.SIMPLE, padding=0, show_lines=True)
    for name in ("name", "stage", "needs", "options and defaults", "arXiv"):
        table.add_column(name, no_wrap=True)
    for name, cls in registry().items():
        options = "\n".join(f"{f.name}={f.default!r}" for f in dataclasses.fields(cls) if f.init)
        needs = "\n".join(sorted(cls.needs))
        stage, paper = cls.stage.replace(", ", "\n"), cls.paper.rpartition("arXiv:")[2]
        table.add_row(name, stage, needs or "-", options or "-", paper)
    Console().print(table)


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="tokenprune", description="Drop visual tokens from vision-language models, without training."
    )
    main.add_argument("--version", action="version", version=f"tokenprune {__version__}")
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="the embedded model answers questions about pictures, full and pruned",
        description="Ask the embedded miniature LLaVA held-out questions, with all its visual tokens and with "
        "some, and print accuracy, tokens, KV-cache size and prefill time side by side.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "--policy",
        type=_policies,
        default="divprune,random",
        metavar="A,B",
        help=f"policies, of: {', '.join(registry())}",
    )
    demo.add_argument(
        "--keep",
        type=_keeps,
        default="0.5,0.25,0.1",
        metavar="K,K",
        help="ratios in (0, 1], or whole numbers of tokens",
    )
    demo.add_argument(
        "--positions",
        choices=("original", "compact"),
        default="original",
        help="position ids of surviving tokens: kept, or renumbered; this model reads places off them",
    )
    demo.add_argument("--samples", type=_count, default=600, metavar="N", help="held-out questions to ask")
    demo.add_argument(
        "--out", type=Path, default=Path("out/demo.png"), metavar="PNG", help="picture of what was kept, to write"
    )
    demo.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    demo.set_defaults(run=_demo)

    _add_profile(commands)

    policies = commands.add_parser("policies", help="list the policies, their options and their papers")
    policies.set_defaults(run=_list_policies)
    return main


#: By name; the shapes live in `eval.shapes`, which imports torch and transformers.
CONFIGS = ("llava-1.5-7b", "llava-next-7b", "llava-onevision-7b", "qwen2.5-vl-7b", "qwen3-vl-8b")


def _stages(text: str) -> list[str]:
    """Policies by comma; a `+` composes stages."""
    return ["+".join(_policies(part.replace("+", ","))) for part in text.split(",")]


def _add_profile(commands: argparse._SubParsersAction) -> None:
    profile = commands.add_parser(
        "profile",
        help="what pruning buys on a model and this machine: latency by phase, memory, FLOPs",
        description="Measure vision encoder, selection, prefill, decoding, KV cache, peak memory and FLOPs, full "
        "and pruned in turns within one run, and say whether pruning pays. Weights need not be there: --config "
        "builds a published model's shape with random ones.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    what = profile.add_mutually_exclusive_group()
    what.add_argument("--model", metavar="PATH_OR_ID", help="a checkpoint; `embedded` is the one that ships with us")
    what.add_argument("--config", choices=CONFIGS, default="llava-1.5-7b", help="a published model's shape")
    profile.add_argument("--layers", type=_count, metavar="N", help="decoder layers of --config, to fit; default all")
    profile.add_argument("--policy", type=_stages, default="divprune", metavar="A,B", help="policies; A+B composes")
    profile.add_argument("--keep", type=_keeps, default="0.5,0.25,0.1", metavar="K,K", help="ratios or whole numbers")
    profile.add_argument("--batch", type=_count, default=1, metavar="N", help="rows")
    profile.add_argument("--image-size", type=_count, metavar="PIXELS", help="height and width; default the model's")
    profile.add_argument("--images", type=_count, default=1, metavar="N", help="pictures in each row")
    profile.add_argument("--frames", type=_count, default=0, metavar="N", help="a video of N frames instead")
    profile.add_argument("--new-tokens", type=_count, default=8, metavar="N", help="tokens to generate, 2 at least")
    profile.add_argument("--rounds", type=_count, default=5, metavar="N", help="repeats to take medians of")
    profile.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default by device")
    profile.add_argument("--attn", choices=("sdpa", "eager", "flash_attention_2"), help="attention implementation")
    profile.add_argument("--device", help="default cuda if there is one")
    profile.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    profile.add_argument("--plot", type=Path, metavar="PNG", help="also draw latency by phase and the savings")
    profile.set_defaults(run=_profile)


def main(argv: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    args = parser().parse_args(argv)
    args.run(args)
