"""Former names of what policies declare or override. They still work, with a `DeprecationWarning`.

When a class that defines a former name is created, its definition moves to the new name. On every policy class the
former name then stands for the new one, so reading, calling and assigning by either name do the same.

This file goes, together with `tests/test_renamed.py`, two minor releases after the first release with the new names.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

#: New names by former names.
RENAMED = {
    "deep_layers": "decoder_layers",
    "deep_select": "decoder_select",
    "deep_select_many": "decoder_select_many",
    "deeper": "decoder_follow_up",
    "encoder": "encoder_spec",
    "places": "source_indices",
    "resized": "resized_shape",
    "tower_select": "encoder_select",
    "way": "budget_weight",
}


class FormerName:
    """A former name on one class; it stands for the new name as that class has it, defined or inherited.

    Each policy class has its own, so that `super().deep_select(view)` and `Parent.deep_select(self, view)` reach the
    parent's `decoder_select`, and not that of the instance's class again.

    Args:
        owner: the class.
        old: the former name.
    """

    def __init__(self, owner: type, old: str):
        self.owner, self.old, self.new = owner, old, RENAMED[old]

    def __get__(self, policy: Any, kind: type) -> Any:
        self._warn()
        if kind is self.owner:
            return getattr(kind if policy is None else policy, self.new)
        parents = kind.__mro__[kind.__mro__.index(self.owner) :]  # reached through super()
        found = next(vars(each)[self.new] for each in parents if self.new in vars(each))
        return found.__get__(policy, kind) if hasattr(type(found), "__get__") else found

    def __set__(self, policy: Any, value: Any) -> None:
        self._warn()
        setattr(policy, self.new, value)

    def __delete__(self, policy: Any) -> None:
        self._warn()
        delattr(policy, self.new)

    def _warn(self) -> None:
        message = f"{self.owner.__name__}.{self.old} is deprecated: use {self.new}"
        warnings.warn(message, DeprecationWarning, stacklevel=3)


class FormerNames:
    """Base of `Policy` that makes the former names work on it and on its subclasses."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        moved = []
        for old, new in RENAMED.items():
            definition = _definition(cls, old, new)
            if definition is not None:
                moved.append(f"{old} is now {new}")
            if isinstance(definition, dataclasses.Field):  # dataclass() needs it where it is
                setattr(cls, new, _stored_under(old))
                continue
            if definition is not None:
                setattr(cls, new, definition)
            setattr(cls, old, FormerName(cls, old))
        if moved:
            message = f"policy class {cls.__name__} uses former names, which are deprecated: {', '.join(moved)}"
            warnings.warn(message, DeprecationWarning, stacklevel=2)


def _definition(cls: type, old: str, new: str) -> Any:
    """What a class, or a parent that is no policy, defines under the former name; None if the new name comes first."""
    for each in cls.__mro__:
        if new in vars(each):
            return None
        if old in vars(each) and not isinstance(vars(each)[old], FormerName):
            return vars(each)[old]
    return None


def _stored_under(old: str) -> property:
    """The new name of a dataclass field that has the former name."""

    def get(policy: Any) -> Any:
        return vars(policy)[old]

    def put(policy: Any, value: Any) -> None:
        vars(policy)[old] = value

    return property(get, put)
