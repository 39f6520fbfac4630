"""`tokenprune policies`."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..eval.errors import CommandError
from ..eval.files import markdown_table
from . import arguments, completers

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..policies import Policy, Preset

STAGES = ("pixels", "encoder", "vision", "decoder")
NEEDS = ("text", "encoder_attention", "nothing")


def add(commands: arguments.Commands) -> None:
    """Add the command."""
    policies = arguments.add_command(
        commands,
        "policies",
        help="list the policies, their options and their papers",
        description="List the policies: at which stage they act, what they keep and read, their options with defaults, "
        "and their papers; or show one in full.",
    )
    name = policies.add_argument("name", nargs="?", metavar="NAME", help="show this policy in full")
    completers.complete(name, completers.policy)
    policies.add_argument("--stage", choices=STAGES, help="those that act at this stage")
    policies.add_argument(
        "--needs", choices=NEEDS, help="those that read this besides the projected tokens, or nothing else"
    )
    how = policies.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="as JSON")
    how.add_argument("--markdown", action="store_true", help="the table of the documentation")
    policies.set_defaults(run=_run)


def facts(name: str, cls: type[Policy]) -> dict[str, Any]:
    """What is known of a policy, as JSON values; defaults of options as the command line takes them."""
    from ..eval.policy_names import format_value, option_defaults

    return {
        "name": name,
        "stages": _stages(cls),
        "needs": sorted(cls.needs),
        "keeps": cls.keeps,
        "options": {option: format_value(value) for option, value in option_defaults(cls).items()},
        "adaptive": cls.adaptive,
        "per_frame": cls.per_frame,
        "paper": cls.paper,
        "deviates": cls.deviates,
        "presets": {preset: _preset(each) for preset, each in cls.presets.items()},
    }


def _preset(preset: Preset) -> dict[str, Any]:
    """What is known of a preset, as JSON values."""
    from ..eval.policy_names import format_value

    return {
        "table": preset.table,
        "model": preset.model,
        "keep": preset.keep,
        "budget": preset.budget,
        "positions": preset.positions,
        "options": {option: format_value(value) for option, value in preset.options.items()},
        "mean": preset.mean,
    }


def _stages(cls: type[Policy]) -> list[str]:
    """The stages that a policy with its default options acts at; those that it declares, if some option has none."""
    from ..eval.policy_names import stages_of
    from ..policies.registration import has_defaults

    return stages_of(cls()) if has_defaults(cls) else cls.stage.split(", ")


def _defaults(cls: type[Policy]) -> list[str]:
    """The options and their defaults, as `name=value` in Python; just the name where there is none."""
    from ..eval.policy_names import option_defaults

    found = option_defaults(cls)
    options = [field.name for field in dataclasses.fields(cls) if field.init]
    return [f"{name}={found[name]!r}" if name in found else name for name in options]


def _acts(cls: type[Policy]) -> str:
    """The stages that a policy acts at, by comma."""
    return ", ".join(_stages(cls))


def _link(paper: str) -> str:
    """A link to arXiv in Markdown, or the text as it is."""
    name, _, number = paper.rpartition("arXiv:")
    return f"[{number}](https://arxiv.org/abs/{number})" if name else paper


def _registry() -> dict[str, type[Policy]]:
    from ..policies import registry

    return registry()


def markdown() -> str:
    """The table of docs/policies.md: stages, inputs, defaults, paper and deviations of each policy."""
    heads = ("policy", "acts", "reads", "defaults", "paper", "differs from it")
    rows = []
    for name, cls in _registry().items():
        reads = ", ".join(need.replace("_", " ") for need in sorted(cls.needs)) or "features"
        defaults = ", ".join(f"`{default}`" for default in _defaults(cls)) or "-"
        acts = f"{_acts(cls)}{', finds its own count' * cls.adaptive}"
        rows.append((f"`{name}`", acts, reads, defaults, _link(cls.paper), cls.deviates or "-"))
    return "\n".join(markdown_table(heads, "l" * len(heads), rows)) + "\n"


def summary() -> str:
    """The table of the README: stages, what is kept, and paper of each policy."""
    heads = ("policy", "acts", "what it keeps", "paper")
    rows = [(f"`{name}`", _acts(cls), cls.keeps, _link(cls.paper)) for name, cls in _registry().items()]
    return "\n".join(markdown_table(heads, "l" * len(heads), rows)) + "\n"


def _run(args: argparse.Namespace) -> None:
    found = _found(args)
    if args.json:
        arguments.write_stdout(json.dumps([facts(name, cls) for name, cls in found.items()], indent=1))
        return
    console = arguments.console(args)
    if args.markdown:
        console.print(markdown(), markup=False, highlight=False, soft_wrap=True)
    elif args.name is not None:
        for part in _in_full(args.name, found[args.name]):
            console.print(part)
    elif found:
        console.print(_overview(found))
    else:
        console.print("no policy is like this")


def _found(args: argparse.Namespace) -> dict[str, type[Policy]]:
    """The policies that are asked for."""
    known = _registry()
    if args.name is not None:
        if args.name not in known:
            from ..policies import UnknownPolicyError, make_policy

            try:
                make_policy(args.name)
            except UnknownPolicyError as error:
                raise CommandError(str(error)) from None
        if args.stage or args.needs or args.markdown:
            raise CommandError("--stage, --needs and --markdown go with the list, not with one policy")
        return {args.name: known[args.name]}
    if args.markdown and (args.stage or args.needs):
        raise CommandError("--markdown goes with the whole list, not with --stage or --needs")
    return {
        name: cls
        for name, cls in known.items()
        if (args.stage is None or args.stage in _stages(cls))
        and (args.needs is None or args.needs in (cls.needs or {"nothing"}))
    }


def _overview(found: dict[str, type[Policy]]) -> RenderableType:
    """A table that folds to narrow terminals: all that is long is in its last column."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), show_lines=True, title="policies", title_justify="left")
    for head in ("policy", "acts"):
        table.add_column(head, no_wrap=True)
    table.add_column("what it keeps, reads and takes", overflow="fold")
    for name, cls in found.items():
        known = facts(name, cls)
        text = Text(known["keeps"] or "-")
        needs = ", ".join(known["needs"])
        options = ", ".join(f"{option}={value}" for option, value in known["options"].items())
        for word, value in (("reads ", needs), ("", options), ("", known["paper"])):
            if value:
                text.append(f"\n{word}{value}", style="dim")
        table.add_row(name, "\n".join(known["stages"]), text)
    return table


def _in_full(name: str, cls: type[Policy]) -> Iterator[RenderableType]:
    """Everything about a policy: facts, what its docstring says, and a table of options."""
    from rich import box
    from rich.markdown import Markdown
    from rich.table import Table
    from rich.text import Text

    known = facts(name, cls)
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for head, value in (
        ("policy", name),
        ("acts", ", ".join(known["stages"])),
        ("reads", ", ".join(known["needs"]) or "projected tokens only"),
        ("keeps", known["keeps"]),
        ("budget", "finds its own number of tokens where none is given" if cls.adaptive else ""),
        ("paper", known["paper"]),
        ("differs", known["deviates"]),
    ):
        if value:
            grid.add_row(head, Text(value))
    yield grid
    text, meanings = _documented(cls)
    yield ""
    yield Markdown(re.sub(r"`([^`]+)`", r"`` `\1` ``", text))  # with the backticks, since a style may not show
    if known["options"]:
        table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
        table.add_column("option", no_wrap=True)
        for head in ("default", "meaning"):
            table.add_column(head, overflow="fold")
        for option, value in known["options"].items():
            table.add_row(option, Text(value), Text(meanings.get(option, "")))
        yield table
    if known["presets"]:
        yield _presets(name, known["presets"], "decoder" in known["stages"])


def _presets(name: str, presets: Mapping[str, Mapping[str, Any]], in_decoder: bool) -> RenderableType:
    """A table of the settings of papers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("preset", no_wrap=True)
    for head in ("setting", "of", "mean"):
        table.add_column(head, overflow="fold")
    for preset, each in presets.items():
        keep = "" if each["keep"] is None else f"keep={each['keep']:g}"
        meaning = "budget=final" if each["budget"] == "final" and keep and in_decoder else ""
        compact = "positions=compact" if each["positions"] == "compact" else ""
        options = (f"{option}={value}" for option, value in each["options"].items())
        setting = " ".join(filter(None, [keep, meaning, compact, *options]))
        mean = "" if each["mean"] is None else f"{each['mean']:g} tokens"
        table.add_row(f"{name}@{preset}", setting, ", ".join(filter(None, [each["table"], each["model"]])), mean)
    return table


def _documented(cls: type[Policy]) -> tuple[str, dict[str, str]]:
    """The text of a policy's docstring, and what it says of each option."""
    text, _, listed = (inspect.getdoc(cls) or "").partition("\nArgs:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE)
    return text.strip(), {option: " ".join(meaning.split()) for option, meaning in entries}
