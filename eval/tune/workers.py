"""The processes of a run: one, or those that `accelerate launch` started."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Workers:
    """The processes that share the batches. They all take the same steps.

    Args:
        state: of accelerate; None: this is the only process.

    Attributes:
        rank: of this process.
        count: of all.
    """

    def __init__(self, state: Any = None):
        self.rank: int = 0 if state is None else state.process_index
        self.count: int = 1 if state is None else state.num_processes
        self.device: Any = None if state is None else state.device

    @classmethod
    def found(cls) -> Workers:
        """Those that were launched with this process."""
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        if state.num_processes > 1 and state.process_index == 0:
            logger.info("%d processes share the prompts (%s)", state.num_processes, state.backend)
        return cls(state if state.num_processes > 1 else None)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and tells the user."""
        return self.rank == 0

    def share(self, work: Sequence[int], do: Callable[[int], T]) -> list[T]:
        """What a function gives for each piece of work, in order; each process does some of them."""
        own = [(i, do(each)) for i, each in enumerate(work) if i % self.count == self.rank]
        if self.count == 1:
            return [result for _, result in own]
        from accelerate.utils import gather_object

        return [result for _, result in sorted(gather_object(own), key=lambda pair: pair[0])]

    def agree(self, decide: Callable[[], T]) -> T:
        """What a function gives in the first process, for all."""
        if self.count == 1:
            return decide()
        from accelerate.utils import broadcast_object_list

        decided: list[Any] = [decide() if self.leads else None]
        broadcast_object_list(decided)
        return decided[0]
