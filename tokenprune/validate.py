"""Checks of options: each error names the option, the value given and what is accepted.

Each check takes the dataclass that is being made and the names of its fields, in `__post_init__`, and leaves plain
Python values there. NumPy's scalars are taken as numbers, a bool is not. All raise ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np

_LARGEST = 2**63 - 1  # index of a tensor
_LARGEST_SEED = 2**64 - 1  # of torch.Generator
_LARGEST_REAL, _SMALLEST_REAL = 1e30, 1e-30  # in size: what float32 holds, and room for a product
_LONGEST = 100  # characters of a value in a message


def shown(value: object) -> str:
    """A value as messages show it, shortened."""
    try:
        text = repr(value)
    except Exception:  # an int of thousands of digits, or somebody's class
        return f"<{type(value).__name__}>"
    return shortened(text)


def shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def whole(owner: object, *names: str, least: int = 0, most: int = _LARGEST) -> None:
    """Whole numbers; a float is none, not even 2.0."""
    for name in names:
        value = getattr(owner, name)
        number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
        if number is None or not least <= number <= most:
            too_large = f", at most {most}" if number is not None and number > most else ""
            raise _refusal(name, value, f"a whole number >= {least}{too_large}")
        _put(owner, name, number)


def seed(owner: object, *names: str) -> None:
    """Seeds as `torch.Generator` takes them, none below zero."""
    whole(owner, *names, most=_LARGEST_SEED)


def real(
    owner: object,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    what: str = "a number",
) -> None:
    """Numbers in a range, of a size that float32 can reckon with.

    Args:
        owner: the dataclass.
        *names: its fields.
        least: smallest number accepted.
        above: a number that is too small already, in place of `least`.
        most: largest number accepted.
        below: a number that is too large already, in place of `most`.
        what: what the number is, as "a share of the budget".
    """
    for name in names:
        value = getattr(owner, name)
        number = _number(value)
        if number is None or not _inside(number, least, above, most, below):
            raise _refusal(name, value, f"{what}{_range(least, above, most, below)}{_size(value)}")
        _put(owner, name, number)


def reals(
    owner: object,
    name: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    ascending: bool = False,
    descending: bool = False,
    empty: bool = False,
    what: str = "numbers",
) -> None:
    """A tuple of such numbers; lists and arrays become tuples.

    Args:
        owner: the dataclass.
        name: its field.
        least, above, most, below: the range, as `real` takes it.
        ascending: each larger than the one before it.
        descending: none larger than the one before it.
        empty: whether there may be none.
        what: what the numbers are, as "shares of the layers".
    """
    value = getattr(owner, name)
    items = _items(value)
    found = [number for number in map(_number, items or ()) if number is not None]
    if (
        items is None
        or len(found) < len(items)
        or not (found or empty)
        or not all(_inside(each, least, above, most, below) for each in found)
        or (ascending and not all(a < b for a, b in pairwise(found)))
        or (descending and not all(a >= b for a, b in pairwise(found)))
    ):
        order = ", ascending" if ascending else ", none larger than the one before it" if descending else ""
        some = "" if empty else ", at least one"
        size = next(filter(None, map(_size, items or ())), "")
        raise _refusal(name, value, f"a tuple or list of {what}{_range(least, above, most, below)}{order}{some}{size}")
    _put(owner, name, tuple(found))


def choice(owner: object, name: str, accepted: Sequence[str]) -> None:
    """One of several strings."""
    value = getattr(owner, name)
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(f"{name}={shown(value)} is unknown; accepted: {', '.join(map(repr, accepted))}")
    _put(owner, name, next(each for each in accepted if each == value))


def boolean(owner: object, *names: str) -> None:
    """True or False, not 0 or 1."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, (bool, np.bool_)):
            raise _refusal(name, value, "True or False")
        _put(owner, name, bool(value))


def instance(owner: object, name: str, kind: type, example: str) -> None:
    """An instance of a class."""
    value = getattr(owner, name)
    if not isinstance(value, kind):
        raise _refusal(name, value, f"an instance of {kind.__name__}, for example {example}")


def _refusal(name: str, value: object, wanted: str) -> ValueError:
    return ValueError(f"{name}={shown(value)} must be {wanted}")


def _put(owner: object, name: str, value: object) -> None:
    object.__setattr__(owner, name, value)  # also where the dataclass is frozen


def _number(value: Any) -> float | int | None:
    """A number of usable size as plain Python; None: it is none."""
    if isinstance(value, bool) or not isinstance(value, Real) or _size(value):
        return None
    return int(value) if isinstance(value, Integral) else float(value)


def _size(value: object) -> str:
    """What messages say of the size of a number that has a wrong one; empty for all else."""
    if not isinstance(value, Real):
        return ""
    try:
        size = abs(float(value))
    except OverflowError:
        size = float("inf")
    if size == 0 or _SMALLEST_REAL <= size <= _LARGEST_REAL:  # NaN is neither
        return ""
    return f"; finite, and unless 0 of a size from {_SMALLEST_REAL:g} to {_LARGEST_REAL:g}"


def _inside(value: float, least: float | None, above: float | None, most: float | None, below: float | None) -> bool:
    return (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )


def _range(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    """The range as messages have it: `, in [0, 1)`, or ` >= 0` where one end is open."""
    low, high = least if above is None else above, most if below is None else below
    if low is not None and high is not None:
        return f", in {'[' if above is None else '('}{low}, {high}{']' if below is None else ')'}"
    if low is not None:
        return f" {'>=' if above is None else '>'} {low}"
    if high is not None:
        return f" {'<=' if below is None else '<'} {high}"
    return ""


def _items(value: object) -> tuple[Any, ...] | None:
    """What is in a tuple, list or array; None: it is none."""
    if isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Iterable):
        return None
    try:
        return tuple(value)
    except TypeError:  # an array without dimensions
        return None
