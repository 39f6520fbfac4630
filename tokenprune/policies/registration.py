"""Policies by name: those of this package, and those of installed packages that declare an entry point."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from ..plugins import builtin_only
from .at_pixels import AtPixels, acts_at_pixels
from .base import Policy
from .presets import FINAL, PIXELS, Preset, preset_among, split_preset
from .stages import Stage

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "tokenprune.policies"

_REGISTRY: dict[str, type[Policy]] = {}
#: Names of those of other packages.
_INSTALLED: set[str] = set()
P = TypeVar("P", bound=type[Policy])


class UnknownPolicyError(ValueError):
    """The policy name is not registered."""


def register(name: str) -> Callable[[P], P]:
    """Class decorator that makes a policy reachable as `apply_pruning(model, name)`.

    Raises:
        TypeError: if the class is not a dataclass that derives from `Policy`.
        ValueError: if another class has the name already.
    """

    def decorate(cls: P) -> P:
        if not dataclasses.is_dataclass(cls) or not issubclass(cls, Policy):
            raise TypeError(f"{cls.__name__} must be a dataclass that derives from Policy")
        if _REGISTRY.setdefault(name, cls) is not cls:
            raise ValueError(f"a policy named {name!r} is already registered: {_REGISTRY[name]}")
        cls.name = name
        return cls

    return decorate


def registry() -> dict[str, type[Policy]]:
    """All policies by name, sorted: our own, and those of installed packages (entry points)."""
    if builtin_only():
        return {name: cls for name, cls in sorted(_REGISTRY.items()) if name not in _INSTALLED}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name not in _REGISTRY:
            try:
                register(entry.name)(entry.load())
                _INSTALLED.add(entry.name)
            except Exception as error:  # a broken package of others must not make our policies unusable
                logger.warning("policy %r of %s could not be loaded: %s", entry.name, entry.value, error)
    return dict(sorted(_REGISTRY.items()))


def has_defaults(cls: type[Policy]) -> bool:
    """Whether a policy can be made without options."""
    return all(
        not field.init or field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        for field in dataclasses.fields(cls)
    )


def make_policy(policy: str | Policy, **options: Any) -> Policy:
    """The policy of a name with its options, or a policy instance as it is.

    A name may end with a preset, as `sparsevlm@v2-128`. Options that are given replace those of the preset. A policy of
    the vision stage whose name ends with `@pixels`, as `divprune@pixels`, chooses before the vision tower.

    Raises:
        UnknownPolicyError: unknown name; the message lists the known ones and suggests the nearest.
        ValueError: an unknown preset, an unknown option, or options beside a policy instance.
        TypeError: neither a name nor a policy.
    """
    if isinstance(policy, Policy):
        if options:
            raise ValueError(f"options {sorted(options)} go into the policy instance, not beside it: {policy!r}")
        return policy
    if not isinstance(policy, str):
        hint = " (an instance is wanted, not the class)" if isinstance(policy, type) else ""
        raise TypeError(f"policy must be a name or a Policy instance, got {policy!r}{hint}")
    policy, preset = split_preset(policy)
    cls = _class_of(policy)
    accepted = [f.name for f in dataclasses.fields(cls) if f.init]
    for option in options:
        if option not in accepted:
            takes = f"it takes: {', '.join(accepted)}" if accepted else "it takes none"
            raise ValueError(f"unknown option {option!r} for policy {policy!r}; {takes}")
    if preset is None:
        return cls(**options)
    made = cls(**{**_preset_among(policy, preset).options, **options})
    return AtPixels(made) if preset == PIXELS and Stage.VISION in made.stages else made


def preset_of(policy: object) -> Preset | None:
    """The preset that a policy's name ends with; None without one.

    Raises:
        UnknownPolicyError: unknown name of a policy.
        ValueError: unknown name of a preset.
    """
    name, preset = split_preset(policy) if isinstance(policy, str) else ("", None)
    if preset is None:
        return None
    return _preset_among(name, preset)


def _preset_among(name: str, preset: str) -> Preset:
    """A preset of the policy of that name. Raises as `preset_of` does."""
    cls = _class_of(name)
    return preset_among(name, cls.presets, preset, (FINAL, PIXELS) if _may_act_at_pixels(cls) else (FINAL,))


def _may_act_at_pixels(cls: type[Policy]) -> bool:
    """Whether a policy with its default options acts before the vision tower, or can."""
    try:
        policy = cls()
        return policy.stages == (Stage.PIXELS,) or acts_at_pixels(policy) is None
    except (TypeError, ValueError):  # it has an option without a default, or a stage that there is not
        return False


def _class_of(name: str) -> type[Policy]:
    """The class that is registered under a name.

    Raises:
        UnknownPolicyError: there is none.
    """
    known = registry()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownPolicyError(f"unknown policy {name!r}.{hint} Known policies: {', '.join(known)}")
    return known[name]
