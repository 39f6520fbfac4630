"""A clear error for objects that cannot be pickled."""

from __future__ import annotations

import copy
import pickle
from typing import Any, ClassVar


class Unpicklable:
    """Mixin of objects that belong to a model of this process. They can be copied with it, but not pickled.

    Class attributes:
        what: what cannot be pickled, for the message.
        advice: what to do instead, for the message.
    """

    what: ClassVar[str] = "a pruned model"
    advice: ClassVar[str] = "call remove_pruning(model) first, and apply_pruning again where it is loaded"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise pickle.PicklingError(f"{self.what} cannot be pickled (torch.save, multiprocessing, Ray); {self.advice}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = object.__new__(type(self))
        memo[id(self)] = new
        vars(new).update(copy.deepcopy(vars(self), memo))
        return new

    def __copy__(self) -> Any:
        new = object.__new__(type(self))
        vars(new).update(vars(self))
        return new
