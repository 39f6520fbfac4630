"""Arguments of the command line, and types of arguments, that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from ..budget import Budget
from ..eval.setting import POSITIONS

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(commands: Commands, name: str, help: str, description: str) -> argparse.ArgumentParser:
    """Add a command whose help shows defaults."""
    return commands.add_parser(
        name, help=help, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def add_positions(parser: argparse.ArgumentParser) -> None:
    """Add `--positions`."""
    parser.add_argument(
        "--positions",
        choices=POSITIONS,
        default="original",
        help="position ids of surviving tokens: kept, or renumbered without gaps",
    )


def add_policy(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--policy`, policies that may be composed."""
    parser.add_argument("--policy", type=policies, default=default, metavar="A,B", help="policies; A+B composes")


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


def keeps(text: str) -> list[float | int]:
    """Keep ratios or numbers of tokens, by comma."""
    out: list[float | int] = []
    for part in text.split(","):
        try:
            value = int(part) if part.strip().lstrip("+-").isdigit() else float(part)
            out.append(Budget(value).keep)
        except ValueError as error:
            detail = error if str(error).startswith("keep=") else f"{part!r} is no number"
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
