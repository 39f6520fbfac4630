"""Families by `config.model_type`: ours, and those of installed packages."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from importlib.metadata import entry_points, version
from typing import Any

from packaging.version import Version
from torch import nn

from ...plugins import builtin_only
from .base import Family
from .classes import derived_type, is_remote
from .refusals import REASONS, UNTRIED, image_text_types

logger = logging.getLogger(__name__)

#: Entry points of other packages: a name, and `module:FAMILY`, where `FAMILY` is a `Family`.
ENTRY_POINT_GROUP = "tokenprune.families"


class UnsupportedModelError(ValueError):
    """The model's type has no family registered, or the model cannot be pruned at all."""


_FAMILIES: dict[str, Family] = {}
#: Those that entry points of other packages took the place of, None where there was none, by model type.
_REPLACED: dict[str, Family | None] = {}
#: Those of this package, by model type.
_OURS: dict[str, Family] = {}
#: Why model types of ours are refused with the installed transformers.
_TOO_OLD: dict[str, str] = {}


def register_family(family: Family, replace: bool = False) -> Family:
    """Make `apply_pruning` accept the model types of a family.

    Args:
        family: its facts.
        replace: whether it takes the place of a family that has one of its model types.

    Returns:
        The same family.

    Raises:
        TypeError: if it is no `Family`.
        ValueError: if another family has one of its model types, and `replace` is False.
    """
    if not isinstance(family, Family):
        raise TypeError(f"register_family takes a Family, got {family!r}")
    for model_type in family.model_types:
        if not replace and _FAMILIES.get(model_type, family) != family:
            raise ValueError(f"model type {model_type!r} has a family already; replace=True puts this one in its place")
    for model_type in family.model_types:
        _FAMILIES[model_type] = family
    return family


def register_since(first: str, why: str, family: Family, *former: str) -> Family:
    """Register a family of ours with transformers `first` and later, and refuse its model types with older ones.

    Args:
        first: version of transformers.
        why: it is refused with older ones, of the model: "its ...".
        family: its facts.
        former: names of its model type in older versions.

    Returns:
        The same family.
    """
    installed = version("transformers")
    if Version(installed) >= Version(first):
        return register_family(family)
    for model_type in (*family.model_types, *former):
        _TOO_OLD[model_type] = f"before transformers {first}, {why}; {installed} is installed"
    return family


def note_ours() -> None:
    """What is registered now comes with this package, and is about classes of transformers."""
    _OURS.update(_FAMILIES)


_LOADING = threading.RLock()
_loaded = False


def _load_entry_points() -> None:
    """Once per process. A package that asks for families while it is loaded gets those that are there."""
    global _loaded
    with _LOADING:
        if not _loaded:
            _loaded = True
            _register_entry_points()


def _register_entry_points() -> None:
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        before = dict(_FAMILIES)
        try:
            register_family(entry.load())
        except Exception as error:  # somebody else's package must not take our families down
            logger.warning("family %r of %s could not be loaded: %s", entry.name, entry.value, error)
        changed = [name for name, family in _FAMILIES.items() if before.get(name) is not family]
        for name in changed:
            _REPLACED.setdefault(name, before.get(name))


def families() -> dict[str, Family]:
    """All families by model type, those of installed packages included."""
    if builtin_only():
        known = {**_FAMILIES, **_REPLACED}
        return {name: family for name, family in sorted(known.items()) if family is not None}
    _load_entry_points()
    return dict(sorted(_FAMILIES.items()))


def supported_model_types() -> list[str]:
    """Model types that have a family."""
    return list(families())


def refused_by_version() -> dict[str, str]:
    """Why model types of ours are refused that the installed transformers is too old for."""
    return dict(_TOO_OLD)


def refused_types() -> dict[str, str]:
    """Why each image-text type is refused that is not supported: of the installed transformers, and all known ones."""
    named = {name: REASONS.get(name, UNTRIED) for name in (*image_text_types(), *REASONS)} | _TOO_OLD
    return {name: reason for name, reason in sorted(named.items()) if name not in families()}


def family_by_type(model_type: str) -> Family:
    """The family of a supported model type.

    Raises:
        KeyError: if it has none.
    """
    return families()[model_type]


def family_of(model: Any) -> Family:
    """The family of a model: that of its model type, or of the class in transformers that its class derives from.

    Raises:
        UnsupportedModelError: naming the model's type and the supported ones; for a class that came with the
            checkpoint, unless a family is registered for it.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    known = families()
    if model_type is None:
        raise _unsupported(f"{type(model).__name__} object is not supported", known)
    if not isinstance(model, nn.Module):
        raise _unsupported(f"model type {model_type!r} is not supported", known)
    remote = is_remote(model)
    if remote and (model_type not in known or known[model_type] is _OURS.get(model_type)):
        raise _unsupported(
            f"model type {model_type!r} is not supported: its class comes with its checkpoint (remote code), of which "
            "nothing is known; load it without trust_remote_code, or register a family for it with "
            "tokenprune.register_family(family, replace=True)",
            known,
        )
    reason = {**REASONS, **_TOO_OLD}.get(model_type)
    if model_type not in known and not remote and reason is None:
        model_type = derived_type(model, known) or model_type
    if model_type not in known:
        why = f": {reason}" if reason else ""
        raise _unsupported(f"model type {model_type!r} is not supported{why}", known)
    return known[model_type].with_tower(model.config)


def _unsupported(what: str, known: Iterable[str]) -> UnsupportedModelError:
    return UnsupportedModelError(f"{what}; supported model types: {', '.join(known)}")
