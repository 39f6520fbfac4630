"""`tokenprune models`."""

from __future__ import annotations

import argparse
import difflib
import json
from typing import Any

from ..eval.errors import CommandError
from . import arguments, completers

_POSITIONS = {"1d": "1-D", "mrope": "mRoPE"}


def add(commands: arguments.Commands) -> None:
    """Add the command."""
    models = arguments.add_command(
        commands,
        "models",
        help="list the supported model types",
        description="List the supported model types (`config.model_type` of a checkpoint), or show one in full.",
    )
    name = models.add_argument("name", nargs="?", metavar="TYPE", help="show this model type in full")
    completers.complete(name, completers.model_type)
    models.add_argument(
        "--all", action="store_true", help="also the types of transformers that are not supported, and why"
    )
    models.add_argument("--json", action="store_true", help="as JSON")
    models.set_defaults(run=_run)


def facts(name: str) -> dict[str, Any]:
    """What is known of a model type, as JSON values; a reason is None where there is nothing against it."""
    from ..patches.families.acting import before_encoder, inside_encoder
    from ..patches.families.registry import family_by_type

    family = family_by_type(name)
    before, inside = before_encoder(family), inside_encoder(family)
    return {
        "model_type": name,
        "takes": list(family.kinds),
        "positions": family.positions,
        "default_keep": family.default_keep,
        "reads_encoder": family.encoder is not None,
        "pixels_stage": before,
        "no_pixels_stage": None if before else family.no_pixel_stage,
        "encoder_policies": list(inside),
        "no_encoder_stage": None if inside else family.no_encoder_stage,
        "no_decoder_stage": family.no_decoder_stage,
    }


def refused() -> list[dict[str, Any]]:
    """Image-text types of transformers that are not supported, with the reason, as JSON values."""
    from ..patches.families.registry import refused_types

    return [{"model_type": name, "not_supported": reason} for name, reason in refused_types().items()]


def _run(args: argparse.Namespace) -> None:
    from ..patches import supported_model_types

    known = supported_model_types()
    if args.name is not None and args.all:
        raise CommandError("--all lists all types; leave out the name, or --all")
    if args.name is not None and args.name not in known:
        reason = next((each["not_supported"] for each in refused() if each["model_type"] == args.name), None)
        if reason is not None:
            raise CommandError(f"model type {args.name!r} is not supported: {reason}")
        near = difflib.get_close_matches(args.name.lower(), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise CommandError(f"model type {args.name!r} is not supported{hint} Supported: {', '.join(known)}")
    found = [facts(name) for name in ([args.name] if args.name else known)]
    others = refused() if args.all else []
    if args.json:
        arguments.write_stdout(json.dumps([*found, *others], indent=1))
    elif args.name:
        _show(args, found[0])
    else:
        _list(args, found)
        if args.all:
            _list_refused(args, others)


def _list(args: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title="supported model types", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for head, width in (("model type", None), ("takes", 7), ("ids", None), ("keep", None), ("also acts in", 8)):
        table.add_column(head, no_wrap=width is None, min_width=width, overflow="fold")
    for each in found:
        table.add_row(
            each["model_type"],
            ", ".join(f"{kind}s" for kind in each["takes"]),
            _POSITIONS[each["positions"]],
            f"{each['default_keep']:g}",
            ", ".join(_further_stages(each)) or "-",
        )
    console = arguments.console(args)
    console.print(table)
    note = (
        "ids: position ids. keep: the default ratio. also acts in: stages besides vision that policies can act at; "
        "`tokenprune models TYPE` says which policies in the encoder, and why not."
    )
    console.print(note, style="dim", highlight=False)


def _list_refused(args: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title="not supported", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("model type", no_wrap=True)
    table.add_column("why", overflow="fold")
    for each in found:
        table.add_row(each["model_type"], each["not_supported"])
    arguments.console(args).print(table)


def _further_stages(known: dict[str, Any]) -> list[str]:
    """Stages, besides vision, at which policies can act on a model type."""
    against = {stage: known[f"no_{stage}_stage"] for stage in ("pixels", "encoder", "decoder")}
    return [stage for stage, reason in against.items() if reason is None]


def _described(known: dict[str, Any], stage: str, how: str) -> str:
    """Whether policies can act at a stage, and how, or why not."""
    reason = known[f"no_{stage}_stage"]
    return f"no: {reason}" if reason else how


def _show(args: argparse.Namespace, known: dict[str, Any]) -> None:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    reads = "yes" if known["reads_encoder"] else "no"
    before = "yes, if the budget is a number" if known["pixels_stage"] == "a number" else "yes"
    for head, value in (
        ("model type", known["model_type"]),
        ("takes", ", ".join(f"{kind}s" for kind in known["takes"])),
        ("position ids", _POSITIONS[known["positions"]]),
        ("default keep", f"{known['default_keep']:g}"),
        ("policies read the vision encoder", reads),
        ("they act before it", _described(known, "pixels", before)),
        ("they act in it", _described(known, "encoder", ", ".join(known["encoder_policies"]))),
        ("they act in the decoder", _described(known, "decoder", "yes")),
    ):
        grid.add_row(head, value)
    arguments.console(args).print(grid)
