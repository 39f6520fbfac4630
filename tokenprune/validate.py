"""Checks of options: each error names the option, the value given and what is accepted.

Checks are called in `__post_init__` of a dataclass, with the instance and the names of its fields. They replace the
fields' values by plain Python values. NumPy scalars are accepted as numbers; a bool is not. All raise ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LARGEST = 2**63 - 1  # largest index of a tensor
_LARGEST_SEED = 2**64 - 1  # that torch.Generator takes
_LARGEST_REAL, _SMALLEST_REAL = 1e30, 1e-30  # absolute values that float32 holds, with room for a product
_LONGEST = 100  # characters of a value in a message


class Bounds(TypedDict, total=False):
    """A range of numbers; a missing or None bound does not limit it.

    Attributes:
        least: smallest number accepted.
        above: in place of `least`, the largest number that is too small.
        most: largest number accepted.
        below: in place of `most`, the smallest number that is too large.
    """

    least: float | None
    above: float | None
    most: float | None
    below: float | None


def shown(value: object) -> str:
    """`repr` of a value for messages, shortened."""
    try:
        text = repr(value)
    except Exception:  # an int of thousands of digits, or a class whose repr fails
        return f"<{type(value).__name__}>"
    return shortened(text)


def shortened(text: str) -> str:
    """A text for messages, cut after 100 characters."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def whole(owner: object, *names: str, least: int = 0, most: int = _LARGEST) -> None:
    """Integers in [least, most]. A float is not accepted, not even 2.0."""
    for name in names:
        value = getattr(owner, name)
        number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
        if number is None or not least <= number <= most:
            too_large = f", at most {most}" if number is not None and number > most else ""
            raise _refusal(name, value, f"a whole number >= {least}{too_large}")
        _put(owner, name, number)


def wholes(owner: object, name: str, *, what: str, least: int = 0) -> None:
    """A tuple of such integers, which may be empty. Lists and arrays become tuples."""
    value = getattr(owner, name)
    items = _items(value)
    if items is None or not all(
        isinstance(each, Integral) and not isinstance(each, bool) and least <= int(each) <= _LARGEST for each in items
    ):
        raise _refusal(name, value, f"a tuple or list of {what}, whole numbers >= {least}")
    _put(owner, name, tuple(int(each) for each in items))


def seed(owner: object, *names: str) -> None:
    """Seeds for `torch.Generator`, in [0, 2**64)."""
    whole(owner, *names, most=_LARGEST_SEED)


def real(owner: object, *names: str, what: str = "a number", **bounds: Unpack[Bounds]) -> None:
    """Finite numbers in a range, 0 or of an absolute value in [1e-30, 1e30], so that float32 can compute with them.

    Args:
        owner: the dataclass instance.
        *names: its fields.
        what: what the number is, for messages, as "a share of the budget".
        **bounds: the range.
    """
    for name in names:
        value = getattr(owner, name)
        number = _number(value)
        if number is None or not _inside(number, **bounds):
            raise _refusal(name, value, f"{what}{_range(**bounds)}{_size(value)}")
        _put(owner, name, number)


def reals(
    owner: object,
    name: str,
    *,
    ascending: bool = False,
    descending: bool = False,
    empty: bool = False,
    what: str = "numbers",
    **bounds: Unpack[Bounds],
) -> None:
    """A tuple of such numbers. Lists and arrays become tuples.

    Args:
        owner: the dataclass instance.
        name: its field.
        ascending: whether each number has to be larger than the one before it.
        descending: whether no number may be larger than the one before it.
        empty: whether an empty tuple is accepted.
        what: what the numbers are, for messages, as "shares of the layers".
        **bounds: the range of each number.
    """
    value = getattr(owner, name)
    items = _items(value)
    found = [number for number in map(_number, items or ()) if number is not None]
    if (
        items is None
        or len(found) < len(items)
        or not (found or empty)
        or not all(_inside(each, **bounds) for each in found)
        or (ascending and not all(a < b for a, b in pairwise(found)))
        or (descending and not all(a >= b for a, b in pairwise(found)))
    ):
        order = ", ascending" if ascending else ", none larger than the one before it" if descending else ""
        some = "" if empty else ", at least one"
        size = next(filter(None, map(_size, items or ())), "")
        raise _refusal(name, value, f"a tuple or list of {what}{_range(**bounds)}{order}{some}{size}")
    _put(owner, name, tuple(found))


def choice(owner: object, name: str, accepted: Sequence[str]) -> None:
    """One of the accepted strings."""
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
    """A number of accepted size as plain Python; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real) or _size(value):
        return None
    return int(value) if isinstance(value, Integral) else float(value)


def _size(value: object) -> str:
    """What a message says about a number whose absolute value is not accepted; empty for anything else."""
    if not isinstance(value, Real):
        return ""
    try:
        size = abs(float(value))
    except OverflowError:
        size = float("inf")
    if size == 0 or _SMALLEST_REAL <= size <= _LARGEST_REAL:  # NaN is neither
        return ""
    return f"; finite, and unless 0 of a size from {_SMALLEST_REAL:g} to {_LARGEST_REAL:g}"


def _inside(
    value: float,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> bool:
    """Whether a number is within `Bounds`."""
    return (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )


def _range(
    least: float | None = None, above: float | None = None, most: float | None = None, below: float | None = None
) -> str:
    """`Bounds` in a message: `, in [0, 1)`, or ` >= 0` with one bound only."""
    low, high = least if above is None else above, most if below is None else below
    if low is not None and high is not None:
        return f", in {'[' if above is None else '('}{low}, {high}{']' if below is None else ')'}"
    if low is not None:
        return f" {'>=' if above is None else '>'} {low}"
    if high is not None:
        return f" {'<=' if below is None else '<'} {high}"
    return ""


def _items(value: object) -> tuple[Any, ...] | None:
    """The elements of a tuple, list or array; None for anything else."""
    if isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Iterable):
        return None
    try:
        return tuple(value)
    except TypeError:  # an array without dimensions
        return None
