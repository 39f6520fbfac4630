"""Policies and families of other packages, which declare them as entry points."""

from __future__ import annotations

_builtin_only = False


def use_builtin_only(on: bool = True) -> None:
    """Leave out what other packages have declared, in this process, until this is called with False.

    The project's own tests and tables are about what this package has, whatever else is installed.
    """
    global _builtin_only
    _builtin_only = on


def builtin_only() -> bool:
    """Whether what other packages have declared is left out."""
    return _builtin_only
