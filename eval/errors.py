"""Errors of commands that users can do something about."""

from __future__ import annotations


class CommandError(Exception):
    """One line for the user: what is wrong, and what to do. The command line prints it and exits with status 2.

    Raise it from a command for what users can change: a file that is not there, a package that is not installed, an
    argument that does not go with another. What it was caused by (`raise CommandError(...) from error`) is shown with
    `-vv`.
    """
