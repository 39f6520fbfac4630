"""Arguments of the command line, and types of arguments, that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import POSITIONS
from ..eval.files import STDOUT
from ..eval.minivlm import EMBEDDED, NAMES
from . import completers

if TYPE_CHECKING:
    from rich.console import Console

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_ALIASES = [f"`{name}` or `{folder.name}`" for name, folder in EMBEDDED.items() if name not in NAMES]
_EMBEDDED = f"{', '.join(_ALIASES[:-1])}, and {_ALIASES[-1]}, ship with us"
#: What `--keep` is.
KEEP_HELP = (
    "visual tokens that a decoder layer holds, mean over layers: ratios in (0, 1] or whole numbers; or energy:0.98, "
    "coverage:0.95"
)
#: Where `-v` (1) and `-q` (-1) are collected before the command's name, and after it.
VERBOSITY = ("verbosity", "verbosity_of_command")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but not that there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def add_command(commands: Commands, name: str, help: str, description: str | None = None) -> argparse.ArgumentParser:
    """Add a command whose help shows defaults, with `-v` and `-q`."""
    parser = commands.add_parser(
        name,
        help=help,
        description=description or f"{help[0].upper()}{help[1:]}.",
        formatter_class=_Help,
    )
    add_verbosity(parser, VERBOSITY[1])
    return parser


def add_verbosity(parser: argparse.ArgumentParser, dest: str) -> None:
    """Add `-v` and `-q`, which collect 1 and -1."""
    for flags, value, what in (
        (("-v", "--verbose"), 1, "say what is done; -vv: in detail, and where an error came from"),
        (("-q", "--quiet"), -1, "results and errors only, no progress"),
    ):
        parser.add_argument(*flags, action="append_const", const=value, dest=dest, default=argparse.SUPPRESS, help=what)


def add_positions(parser: argparse.ArgumentParser) -> None:
    """Add `--positions`."""
    parser.add_argument(
        "--positions",
        choices=POSITIONS,
        default="original",
        help="position ids of surviving tokens: kept, or renumbered without gaps",
    )


def add_several_positions(parser: argparse.ArgumentParser) -> None:
    """Add `--positions`, of which several may be named."""
    positions = parser.add_argument(
        "--positions",
        type=choices(POSITIONS),
        default="original",
        metavar="P,P",
        help=f"of surviving tokens: {', '.join(POSITIONS)}",
    )
    completers.complete(positions, completers.listed(POSITIONS))


def add_policy(parser: argparse.ArgumentParser, default: str | None, note: str = "") -> None:
    """Add `--policy`, policies with options that may be composed; `note` goes to the end of its help."""
    action = parser.add_argument(
        "--policy",
        type=policies,
        default=default,
        metavar="A,B",
        help="policies (see `tokenprune policies`); A:OPTION=VALUE sets an option, A+B composes, A@PRESET is a paper's "
        "setting" + note,
    )
    completers.complete(action, completers.policies)


def add_model(parser: argparse._ActionsContainer, help: str, default: str | None = "embedded") -> None:
    """Add `--model`, a checkpoint, to a parser or a group of one."""
    action = parser.add_argument("--model", default=default, metavar="PATH_OR_ID", help=f"{help}; {_EMBEDDED}")
    completers.complete(action, completers.models)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json [FILE]`; without a file, JSON goes to standard output, and nothing else does."""
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="also write the figures as JSON; without FILE, or with -, to standard output in place of tables",
    )


def console(args: argparse.Namespace) -> Console:
    """The console of a command: without progress bars under `-q`, on standard error if JSON goes to standard output."""
    from rich.console import Console

    quiet = getattr(args, VERBOSITY[0], 0) < 0
    return Console(stderr=getattr(args, "json", None) == STDOUT, force_interactive=False if quiet else None)


def write_stdout(text: str) -> None:
    """Write a text and a line break to standard output, as it is."""
    sys.stdout.write(f"{text}\n")


def policies(text: str) -> list[str]:
    """Policies by comma, each with its options (`fastv:layer=3`); `A+B` composes policies of different stages.

    Returns:
        The same in the form that tables have.
    """
    from ..eval.policy_names import split_list
    from ..eval.setting import PruningSetting

    listed = split_list(text)
    if not listed:
        raise argparse.ArgumentTypeError("no policy given")
    try:
        return [PruningSetting(part).name for part in listed]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def policy(text: str) -> str:
    """One policy, or several that are composed."""
    listed = policies(text)
    if len(listed) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} names {len(listed)} policies; one is accepted")
    return listed[0]


_ACCEPTED_KEEPS = "accepted: ratios in (0, 1], whole numbers of tokens, energy:SHARE and coverage:SHARE, by comma"


def keeps(text: str) -> list[float | int | str]:
    """Keep ratios, numbers of tokens, `energy:SHARE` or `coverage:SHARE`, by comma."""
    from ..adaptive_budget import kind_of, parsed
    from ..budget import Budget

    out: list[float | int | str] = []
    for part in text.split(","):
        try:
            if kind_of(part.strip()) is not None:
                out.append(str(parsed(part.strip())))
                continue
            value = int(part) if part.strip().lstrip("+-").isdigit() else float(part)
            out.append(Budget(value).keep)
        except ValueError as error:
            detail = error if str(error).startswith("keep=") else f"{part!r} is no number; {_ACCEPTED_KEEPS}"
            raise argparse.ArgumentTypeError(str(detail)) from None
    return out


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def counts(text: str) -> list[int]:
    """Whole numbers above 0, by comma."""
    return [count(part.strip()) for part in text.split(",")]


def names(text: str, what: str = "name") -> list[str]:
    """Names of something, by comma; at least one."""
    listed = [name.strip() for name in text.split(",") if name.strip()]
    if not listed:
        raise argparse.ArgumentTypeError(f"no {what} given")
    return listed


def choices(accepted: Collection[str]) -> Callable[[str], list[str]]:
    """A type of argument: some of the accepted names, by comma."""

    def read(text: str) -> list[str]:
        chosen = list(dict.fromkeys(names(text)))
        for name in chosen:
            if name not in accepted:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(accepted)}")
        return chosen

    return read


def quiet_transformers() -> None:
    """Turn off transformers' warnings and progress bars, which would hide a command's own output."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
