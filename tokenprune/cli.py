# PYTHON_ARGCOMPLETE_OK
"""`tokenprune` on the command line."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from . import __version__
from .commands import bench, completion, demo, evaluate, models, play, policies, profile, report, show, tune
from .commands.arguments import VERBOSITY, add_verbosity
from .commands.failures import Interruptions, failure

logger = logging.getLogger(__package__)

_COMMANDS = (demo, play, tune, bench, show, profile, evaluate, report, policies, models, completion)


class Parser(argparse.ArgumentParser):
    """A parser that suggests what a misspelt choice may have been.

    Attributes:
        commands: parsers of commands by name; empty for that of a command.
    """

    commands: dict[str, argparse.ArgumentParser] = {}  # noqa: RUF012

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with status 2."""
        found = re.match(r".*invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if found is not None:
            wrong, accepted = found[1], re.findall(r"[\w.-]+", found[2])
            near = difflib.get_close_matches(wrong.lower(), accepted, n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        super().error(message)


def parser() -> Parser:
    """The parser of all commands. Parsed arguments have `run`, which executes the command."""
    main = Parser(prog="tokenprune", description="Drop visual tokens from vision-language models, without training.")
    main.add_argument("--version", action="version", version=f"tokenprune {__version__}")
    add_verbosity(main, VERBOSITY[0])
    commands = main.add_subparsers(dest="command", metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    main.commands = dict(commands.choices)
    return main


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: arguments; None: those of the process.

    Raises:
        SystemExit: with status 2 for what the user can change, after one line on standard error; 130 after Ctrl-C.
    """
    of_all, args, interruptions = parser(), argparse.Namespace(command=None), Interruptions()
    try:
        with interruptions.noted():
            if "_ARGCOMPLETE" in os.environ:
                import argcomplete

                argcomplete.autocomplete(of_all)
            args = of_all.parse_args(argv)
            _run(of_all, args)
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        end = failure(error, interruptions)
        if end is None:
            raise
        logger.debug("the error came from here", exc_info=error)
        if end.message:
            told = "tokenprune" if args.command is None else f"tokenprune {args.command}"
            resumes = end.status == 130 and "resumes" in args
            note = f"; the same command goes on from {getattr(args, 'work', args.out)}" if resumes else ""
            sys.stderr.write(f"{told}: {end.message}{note}\n")
        else:
            _drop_output()
        raise SystemExit(end.status) from None


def _run(of_all: Parser, args: argparse.Namespace) -> None:
    """Run the command that was parsed; without one, print what there is."""
    args.verbosity = sum(sum(vars(args).pop(dest, [])) for dest in VERBOSITY)
    _set_up_logging(args.verbosity)
    if args.command is None:
        of_all.print_help()
    else:
        args.run(args)


class _Stderr(logging.Handler):
    """Writes to what is standard error at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")


_HANDLER = _Stderr()
_HANDLER.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))


def _set_up_logging(verbosity: int) -> None:
    """Let our messages through: warnings, with -v also what is done, with -vv all, with -q only errors."""
    levels = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}
    logger.setLevel(levels[max(-1, min(verbosity, 2))])
    if _HANDLER not in logger.handlers:
        logger.addHandler(_HANDLER)
    if verbosity < 0:
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
            os.environ.setdefault(name, "1")
        if not sys.warnoptions:
            warnings.simplefilter("ignore")


def _drop_output() -> None:
    """Let what is still to be written go nowhere, so that the interpreter's last flush does not complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
