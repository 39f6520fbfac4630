"""Command-line arguments, and types of them, that several commands take."""

from __future__ import annotations

import argparse

from ..budget import Budget
from ..policies import make_policy

POSITIONS = ("original", "compact")


def positions(parser: argparse.ArgumentParser) -> None:
    """Adds `--positions`."""
    parser.add_argument(
        "--positions",
        choices=POSITIONS,
        default="original",
        help="position ids of surviving tokens: kept, or renumbered without gaps",
    )


def policies(text: str) -> list[str]:
    """Policies by comma."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("no policy given")
    try:
        for name in names:
            make_policy(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return names


def stages(text: str) -> list[str]:
    """Policies by comma; a `+` composes stages."""
    return ["+".join(policies(part.replace("+", ","))) for part in text.split(",")]


def keeps(text: str) -> list[float | int]:
    """Budgets by comma, ratios or whole numbers of tokens."""
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
    """Whole numbers above 0 by comma."""
    return [count(part.strip()) for part in text.split(",")]


def names(text: str) -> list[str]:
    """Names by comma."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("no name given")
    return found


def quiet_transformers() -> None:
    """Its notes on optional packages, and its progress bars, would bury a command's own output."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
