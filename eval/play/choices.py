"""Policies and options as people choose them on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ...policies import Policy, make_policy, registry
from ...policies.presets import split_preset
from ..policy_names import make_named_policy, option_defaults, parse_policy, policy_label, split_composition, split_list
from ..setting import PruningSetting

LEAST_KEEP = 0.02  # of the slider


def acting(model: nn.Module) -> tuple[dict[str, Policy], dict[str, str]]:
    """The policies that can act on a model, by name; and why the others cannot, by name.

    Args:
        model: a supported model, not pruned.
    """
    possible: dict[str, Policy] = {}
    refused: dict[str, str] = {}
    for name in registry():
        try:
            # The page always has a budget, which policies that find their own number need on some models.
            with PruningSetting(name, 0.5 if make_policy(name).adaptive else None).context(model):
                possible[name] = make_policy(name)
        except (ValueError, TypeError) as error:
            refused[name] = str(error)
    return possible, refused


def defaults(name: str) -> dict[str, Any]:
    """The options of a policy and their defaults."""
    return option_defaults(registry()[split_preset(name)[0]])


def setting(names: Sequence[str], options: str, keep: float | None, positions: Any) -> PruningSetting:
    """The setting that is chosen on the page.

    Args:
        names: policies; several act at different stages.
        options: as in `"layer=3, pivots=8"`; with several policies that have an option of that name, as in
            `"dart:layer=3"`.
        keep: ratio from `LEAST_KEEP` to 1.
        positions: as in `apply_pruning`.

    Raises:
        ValueError: no policy, an unknown or bad option, or a bad keep ratio.
    """
    if not names:
        raise ValueError("no policy is chosen; choose one, or several that act at different stages")
    if not isinstance(keep, float | int) or not LEAST_KEEP <= keep <= 1:
        raise ValueError(f"the keep ratio {keep} is not between {LEAST_KEEP} and 1")
    given: dict[str, list[str]] = {name: [name] for name in names}
    for item in split_list(options):
        owner, option = _owner(item, names)
        given[owner].append(option)
    text = "+".join(":".join(parts) for parts in given.values())
    return PruningSetting(text, float(keep), positions)  # a keep of int 1 would be one token


def chosen(text: str) -> tuple[tuple[str, ...], str]:
    """Names of policies and options as the page has them, for a composition as on the command line.

    Args:
        text: as in `"divprune+fastv:layer=3"`.

    Raises:
        ValueError: an unknown policy, or options that it does not take.
    """
    names, options = [], []
    for part in split_composition(text):
        make_named_policy(part)
        name, given = parse_policy(part)
        names.append(name)
        options += [policy_label(name, {option: value}) for option, value in given.items()]
    return tuple(names), ", ".join(options)


def fitting(options: str, names: Sequence[str]) -> str:
    """The options without those that none of the policies has."""

    def fits(item: str) -> bool:
        owner, option = _parts(item)
        if "=" not in option:
            return True  # its error is to be seen
        owners = [name for name in names if owner in ("", name)]
        return any(option.partition("=")[0].strip() in defaults(name) for name in owners)

    return ", ".join(filter(fits, split_list(options)))


def _owner(item: str, names: Sequence[str]) -> tuple[str, str]:
    """The policy that an option belongs to, and the option without that policy's name."""
    owner, option = _parts(item)
    if owner:
        if owner not in names:
            raise ValueError(f"option {item!r} is of a policy that is not chosen; chosen: {', '.join(names)}")
        return owner, option
    if len(names) == 1:
        return names[0], option
    name = option.partition("=")[0].strip()
    owners = [each for each in names if name in defaults(each)]
    if not owners:
        takes = "; ".join(f"{each} takes {', '.join(defaults(each)) or 'none'}" for each in names)
        raise ValueError(f"unknown option {item!r}: {takes}")
    if len(owners) > 1:
        raise ValueError(f"{' and '.join(owners)} have an option {name!r} each; write {owners[0]}:{item}")
    return owners[0], option


def _parts(item: str) -> tuple[str, str]:
    """The policy's name in front of an option, or nothing; and the option."""
    name, equals, value = item.partition("=")
    owner, _, option = name.rpartition(":")
    return owner.strip(), f"{option}{equals}{value}".strip()
