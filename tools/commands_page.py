"""Makes docs/cli.md from the parsers of the commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from tokenprune import cli

HEAD = """\
# Commands

This page is generated from the parsers. `tokenprune COMMAND --help` prints the same.

Every command takes `-v` (says what is done), `-vv` (in detail) and `-q` (results only). `--json` without a file writes
JSON to standard output, and nothing else. An error is one line on standard error, and the exit status is 2, or 130
after Ctrl-C; `-vv` shows where it came from. `--model` takes `embedded` or `llava`, `embedded-qwen` or `qwen`,
`embedded-qwen3` or `qwen3`, `embedded-qwen-pages` or `qwen-pages`, a folder, or an id of the hub.
`--image` takes files and addresses. `--out`, `--json` and `--plot` are checked before any
work: missing folders are made, and the suffix of a picture says its format.

Options of a policy follow its name, and `+` composes policies of different stages: `--policy
fastv:layer=3,divprune+fastv`.
"""


def _subparsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _name(action: argparse.Action) -> str:
    """The option with the name of its value, as `` `--keep K,K` ``."""
    named = None if action.nargs == 0 or action.choices else action.dest.upper()
    value = action.metavar or named
    if isinstance(value, tuple):
        value = " ".join(value)
    names = ", ".join(action.option_strings) or action.dest
    shown = f"{names} {value}" if value and action.option_strings else str(value or names)
    return f"`{_escaped(shown)}`"


def _meaning(action: argparse.Action) -> str:
    said = _escaped((action.help or "").replace("%%", "%").replace("%(default)s", str(action.default)))
    if action.choices is not None and len(list(action.choices)) < 10:
        said += f" ({', '.join(f'`{choice}`' for choice in action.choices)})"
    return said


def _default(action: argparse.Action) -> str:
    value = action.default
    if value is None or value is False or value is argparse.SUPPRESS or value in ([], "") or action.required:
        return ""
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if text.count(",") > 12:
        return "all"
    return f"`{_escaped(text)}`"


def _table(actions: list[argparse.Action]) -> list[str]:
    rows = [f"| {_name(action)} | {_default(action)} | {_meaning(action)} |" for action in actions]
    return ["| option | default | meaning |", "|---|---|---|", *rows]


def _documented(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    hidden = (argparse._HelpAction, argparse._SubParsersAction)
    return [a for a in parser._actions if not isinstance(a, hidden) and a.help is not argparse.SUPPRESS]


def _said(parser: argparse.ArgumentParser) -> list[str]:
    return [parser.description.replace("\n", " ").strip()] if parser.description else []


def _summary(main: argparse.ArgumentParser, name: str) -> str:
    """What the list of commands says of one."""
    subparsers = next(a for a in main._actions if isinstance(a, argparse._SubParsersAction))
    said = next((choice.help for choice in subparsers._choices_actions if choice.dest == name), None) or name
    return f"{said[0].upper()}{said[1:]}."


def page() -> str:
    """The page: a section for each command, with its options."""
    main = cli.parser()
    lines = [HEAD.rstrip()]
    if main_options := _documented(main):
        lines += ["", "## `tokenprune`", "", *_table(main_options)]
    for name, parser in _subparsers(main):
        lines += ["", f"## `tokenprune {name}`", "", *(_said(parser) or [_summary(main, name)])]
        shared = {option for action in main_options for option in action.option_strings}
        if options := [action for action in _documented(parser) if not shared.intersection(action.option_strings)]:
            lines += ["", *_table(options)]
    return "\n".join(lines) + "\n"
