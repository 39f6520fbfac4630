"""What a shell completes: names of policies and models. They are read from source files, since importing takes long."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ..eval.minivlm import EMBEDDED

_PACKAGE = Path(__file__).parents[1]
_REGISTERED = re.compile(r'^@register\("(\w+)"\)', re.MULTILINE)
_MODEL_TYPES = re.compile(r"model_types=\(([^)]*)\)")

Completer = Callable[..., Collection[str]]


def complete(action: argparse.Action, completer: Completer) -> None:
    """Let argcomplete ask a completer about an argument."""
    action.completer = completer  # type: ignore[attr-defined]


def policy_names() -> list[str]:
    """Names of policies, those of installed packages included."""
    found = {entry.name for entry in entry_points(group="tokenprune.policies")}
    for path in (_PACKAGE / "policies").glob("*.py"):
        found.update(_REGISTERED.findall(path.read_text()))
    return sorted(found)


def model_types() -> list[str]:
    """Model types of our families."""
    found: set[str] = set()
    for path in (_PACKAGE / "patches" / "families").glob("*.py"):
        for listed in _MODEL_TYPES.findall(path.read_text()):
            found.update(re.findall(r'"(\w+)"', listed))
    return sorted(found)


def _parts(prefix: str, names: Collection[str], separators: str) -> list[str]:
    """The names that a last part can become, with what stands before it."""
    start = max(prefix.rfind(separator) for separator in separators) + 1
    return [prefix[:start] + name for name in names if name.startswith(prefix[start:])]


def policy(prefix: str, **_: Any) -> list[str]:
    """Completes one name."""
    return [name for name in policy_names() if name.startswith(prefix)]


def model_type(prefix: str, **_: Any) -> list[str]:
    """Completes a model type."""
    return [name for name in model_types() if name.startswith(prefix)]


def policies(prefix: str, **_: Any) -> list[str]:
    """Completes the last policy of `A,B+C`."""
    return _parts(prefix, policy_names(), ",+")


def listed(names: Collection[str]) -> Completer:
    """Completes the last of some names by comma."""
    return partial(_listed, names)


def _listed(names: Collection[str], prefix: str, **_: Any) -> list[str]:
    return _parts(prefix, names, ",")


def models(prefix: str, **_: Any) -> list[str]:
    """Completes names of embedded models, and folders."""
    from argcomplete.completers import DirectoriesCompleter

    ours = [name for name in EMBEDDED if name.startswith(prefix)]
    return [*ours, *DirectoriesCompleter()(prefix)]
