"""Errors that users can do something about, as one line and an exit status."""

from __future__ import annotations

import signal
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..eval.errors import CommandError

_PACKAGE = __name__.partition(".")[0]


class Failure(NamedTuple):
    """How a command ends.

    Attributes:
        message: one line; empty for none.
        status: of the process.
    """

    message: str
    status: int


class Interruptions:
    """Whether Ctrl-C was pressed: an import of a compiled module that it interrupts may fail with another error."""

    def __init__(self) -> None:
        self.any = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note them in a block; `KeyboardInterrupt` is raised as always. Does nothing outside the main thread."""
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _note(self, number: int, frame: Any) -> None:
        self.any = True
        signal.default_int_handler(number, frame)


def failure(error: BaseException, interruptions: Interruptions) -> Failure | None:
    """What the user is told of an error; None for one that nobody expects, whose traceback is needed.

    Expected are `CommandError`, an interruption, what the operating system refuses, a package that is not installed,
    and values that this package refuses itself.
    """
    if isinstance(error, KeyboardInterrupt) or interruptions.any:
        return Failure("interrupted", 130)
    if isinstance(error, BrokenPipeError):  # whoever reads the output has seen enough
        return Failure("", 1)
    if isinstance(error, CommandError):
        return Failure(_line(str(error)), 2)
    if isinstance(error, OSError):
        return Failure(_line(_named(error)), 2)
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] != _PACKAGE:
        return Failure(_line(str(error)), 2)
    if isinstance(error, ValueError) and _raised_here(error.__traceback__):
        return Failure(f"{_line(str(error))} (-vv shows where)", 2)
    return None


def _line(text: str) -> str:
    return " ".join(text.split())


def _named(error: OSError) -> str:
    """The file first, without the number of the error."""
    if error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return error.strerror or str(error) or type(error).__name__


def _raised_here(traceback: types.TracebackType | None) -> bool:
    """Whether code of this package raised the error, and not a library that it called."""
    module = ""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return module.partition(".")[0] == _PACKAGE
