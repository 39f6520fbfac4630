"""Policies as text: a name with options, several that act together, and lists of them.

    policies     = composition {"," composition}
    composition  = policy {"+" policy}
    policy       = name ["@" preset] {":" option "=" value}

`fastv:layer=3,divprune+fastv:layer=3` is two compositions, of one and of two policies. A value is a Python literal
where it can be read as one, else text: `fopru:strategy=row:include_cls_query=False`. Commas, colons and plus signs
inside brackets or quotes do not separate: `auto:depths=(0.25,0.5)`. A schedule is written as its depths, or as
`Schedule(depths, counts)`.

A preset is a setting of the policy's paper, with its options and mostly its budget: `sparsevlm@v2-128`. The preset
`final` of any policy says that the keep ratio counts what is left after the last cut, not the mean over decoder layers;
in a composition it says so for all: `divprune+fastv@final`. With `pixels` a policy of the vision stage that reads
features only chooses before the vision tower: `divprune@pixels`.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ..policies import Policy, make_policy, registry
from ..policies.presets import split_preset
from ..schedule import Schedule

_OPENING, _CLOSING = "([{", ")]}"
_EXPONENT = re.compile(r"[\d.][eE]$")  # of a number, before its sign


def split_list(text: str) -> list[str]:
    """The parts of a list of policies, stripped; empty ones are left out."""
    return [part.strip() for part in _split(text, ",") if part.strip()]


def split_composition(text: str) -> list[str]:
    """The policies of a composition, stripped.

    Raises:
        ValueError: one of several is empty.
    """
    parts = [part.strip() for part in _split(text, "+")]
    if len(parts) > 1 and not all(parts):
        raise ValueError(f"policy {text!r} names no policy beside a '+'; write A+B, as divprune+fastv")
    return parts


def parse_policy(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of one policy. Whether they exist is not checked.

    Raises:
        ValueError: an option without a name or a value, or given twice.
    """
    name, *parts = (part.strip() for part in _split(text, ":"))
    options: dict[str, Any] = {}
    for part in parts:
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not option.isidentifier() or not equals or not value:
            raise ValueError(f"policy {text!r}: {part!r} is no option; write NAME:OPTION=VALUE, as fastv:layer=3")
        if option in options:
            raise ValueError(f"policy {text!r}: option {option!r} is given twice")
        options[option] = _value(value)
    return name, options


def make_named_policy(text: str, **more: Any) -> Policy:
    """The policy that a text names.

    Args:
        text: a name, with or without options.
        **more: further options.

    Raises:
        UnknownPolicyError: no policy of that name.
        ValueError: an option that the policy does not have, whose value it does not accept, or that is given twice.
    """
    name, options = parse_policy(text)
    twice = [option for option in options if option in more]
    if twice:
        raise ValueError(f"policy {text!r}: option {twice[0]!r} is given twice")
    if not options or split_preset(name)[0] not in registry():
        return make_policy(name, **more)
    defaults = option_defaults(registry()[split_preset(name)[0]])
    try:
        for option, value in options.items():
            if isinstance(defaults.get(option), Schedule):
                options[option] = _schedule(value)
        return make_policy(name, **options, **more)
    except (TypeError, ValueError) as error:
        listed = ", ".join(f"{option}={format_value(value)}" for option, value in defaults.items())
        takes = f"options of {name}, with their defaults: {listed}" if listed else f"{name} has no options"
        raise ValueError(f"policy {text!r}: {error}; {takes}") from None


def acting(policy: Policy) -> list[Policy]:
    """A policy, and what follows it in the decoder, if anything does."""
    follow_up = policy.decoder_follow_up()
    return [policy] if follow_up is None else [policy, follow_up]


def stages_of(policy: Policy) -> list[str]:
    """The stages that a policy acts at, with those of its follow-up in the decoder."""
    return [str(stage) for each in acting(policy) for stage in each.stages]


def option_defaults(cls: type[Policy]) -> dict[str, Any]:
    """The options of a policy that have a default, and these."""
    found = {}
    for field in dataclasses.fields(cls):
        if field.init and field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.init and field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def policy_label(name: str, options: Mapping[str, Any]) -> str:
    """A policy as text: the name, and the options in the order given."""
    return ":".join([name, *(f"{option}={format_value(value)}" for option, value in options.items())])


def label_of(policy: Policy) -> str:
    """A policy instance as text: its name, and the options that differ from their defaults."""
    chooser = policy.chooser
    options = {field.name: getattr(chooser, field.name) for field in dataclasses.fields(chooser) if field.init}
    defaults = option_defaults(type(chooser))
    changed = {name: value for name, value in options.items() if name not in defaults or value != defaults[name]}
    return policy_label(policy.label, changed)


def format_value(value: Any) -> str:
    """The value of an option as text without spaces, which `parse_policy` reads again."""
    if isinstance(value, str):
        plain = re.fullmatch(r"[\w.-]+", value) and isinstance(_value(value), str)
        return value if plain else repr(value)
    if isinstance(value, Schedule):
        depths, counts = format_value(value.depths), format_value(value.counts)
        return depths if value.counts is None else f"Schedule({depths},{counts})"
    if isinstance(value, tuple | list) and all(isinstance(each, int | float) for each in value):
        return repr(value).replace(" ", "")
    return repr(value)


def _split(text: str, separator: str) -> list[str]:
    """Parts of a text between separators that are outside brackets and quotes; a sign of an exponent is none."""
    parts, start, depth, quote = [], 0, 0, ""
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth = max(0, depth - 1)
        elif character == separator and depth == 0:
            if separator == "+" and _EXPONENT.search(text[start:i]) and text[i + 1 : i + 2].isdigit():
                continue
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def _value(text: str) -> Any:
    """A Python literal; else the text as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _schedule(value: Any) -> Any:
    """A schedule of its depths, or of a text `Schedule(depths, counts)`; anything else as it is.

    Raises:
        TypeError, ValueError: what a schedule does not accept.
    """
    if isinstance(value, float | int | tuple | list):
        return Schedule(tuple(value) if isinstance(value, tuple | list) else (value,))
    try:
        call = ast.parse(value, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != Schedule.__name__:
            return value
        given = [ast.literal_eval(each) for each in call.args]
        named = {each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg is not None}
    except (SyntaxError, TypeError, ValueError):
        return value
    return Schedule(*given, **named)
