"""One forward call in flight: its state, and the stack that holds it in this thread.

A call begins at the outermost module of the pruned model that has something to say (a head that was given labels,
else the base model, else the text model) and ends with the base model, or with a text model that is called alone.
torch runs forward hooks after an `Exception` but not after a KeyboardInterrupt or SystemExit, so a call can be left on
the stack although it is over. Therefore every module that enters asks whether the call it finds is still running, which
the frames of this thread tell.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .cache import Layout
    from .decoder_stage import Deep
    from .head import LogitsToKeep
    from .packing import Packing
    from .pruner import Pruner
    from .visual_inputs import Request


@dataclass(eq=False)
class ForwardCall:
    """State of one forward call.

    Attributes:
        pruner: whose call it is.
        outermost: depth of the module at which the call began, counted from the outside in: wrappers and the head,
            the base model, the text model.
        depth: depth of the innermost module that has been entered.
        frame: the frame that runs the outermost module.
        thread: identifier of the thread.
        labels: a copy of the caller's labels, (B, L), which the head computes its loss with; it shrinks in place.
        logits_to_keep: which places the head computes logits for, if it was asked for some.
        request: what is visual in this call; None without pictures.
        layout: what the KV cache holds once the text model has run.
        mask: the caller's, where the base model replaces it by masks of its own.
        shrunk: whether this call's sequence differs from what the caller passed.
        deep: state of the decoder stage.
        length: of the sequence that the text model was to be fed.
        packing: which of the caller's columns are left, in the last layer.
        cache: a KV cache that was pruned before.
        outer: the call around this one, of another pruned model or of the same.
    """

    pruner: Pruner
    outermost: int
    depth: int
    frame: FrameType | None
    thread: int = field(default_factory=threading.get_ident)
    labels: Tensor | None = None
    logits_to_keep: LogitsToKeep | None = None
    request: Request | None = None
    layout: Layout | None = None
    mask: Any = None
    shrunk: bool = False
    deep: Deep | None = None
    length: int = 0
    packing: Packing | None = None
    cache: Any = None
    outer: ForwardCall | None = None

    @property
    def running(self) -> bool:
        """Whether the frame that began this call is still on the stack of its thread."""
        frame: FrameType | None = sys._getframe(1) if self.here else sys._current_frames().get(self.thread)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None

    def reaches(self, depth: int) -> bool:
        """Whether the head itself calls the base model at `depth`, where a head began the call, and no hook on it."""
        heads = self.pruner.heads
        if self.outermost >= len(heads) or depth != len(heads):
            return True
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self.frame:
            if frame.f_code.co_name == "forward" and frame.f_locals.get("self") is heads[-1]:
                return True
            frame = frame.f_back
        return False

    @property
    def here(self) -> bool:
        """Whether this thread runs it."""
        return self.thread == threading.get_ident()

    def reads(self, cache: Any) -> None:
        """A pruned cache is read in this call, under hooks that know what it holds."""
        self.cache = cache
        cache.hooked = self

    def release_cache(self) -> None:
        """Nobody reads the cache any more."""
        if self.cache is not None:
            self.cache.hooked = self.cache = None

    def outputs_follow(self, packing: Packing, length: int) -> None:
        """Shrink what the head needs with the sequence, which had `length` columns: labels, places of logits."""
        self.packing = packing.after(self.packing)
        if self.labels is not None:
            self.labels.data = packing.labels(self.labels)
        if self.logits_to_keep is not None:
            self.logits_to_keep.follow(packing, length)


_CALL: ContextVar[ForwardCall | None] = ContextVar("tokenprune_call", default=None)


def innermost() -> ForwardCall | None:
    """The call on top of this thread's stack, of whatever model."""
    return _CALL.get()


def current(pruner: Pruner) -> ForwardCall | None:
    """The call of this pruner that runs in this thread; None between calls."""
    call = _CALL.get()
    return call if call is not None and call.pruner is pruner else None


def enter(pruner: Pruner, depth: int, frame: FrameType) -> ForwardCall:
    """A module at `depth` is called, from `frame`: go on with the call of the module around it, or begin one.

    Raises:
        RuntimeError: if the pruning was removed or replaced in this moment.
    """
    call = current(pruner)
    heads = len(pruner.heads)
    follows = call is not None and (call.depth == depth - 1 if depth > heads else call.depth < depth)
    if call is not None and follows and call.here and call.running and call.reaches(depth):
        call.depth = depth
        return call
    return begin(pruner, depth, frame)


def begin(pruner: Pruner, depth: int, frame: FrameType) -> ForwardCall:
    """A call of its own, whatever runs around it. Raises as `enter` does."""
    call = ForwardCall(pruner, depth, depth, frame, outer=_drop_interrupted())
    pruner.in_flight[id(call)] = call
    if pruner.closed:
        del pruner.in_flight[id(call)]
        raise RuntimeError("the pruning of this model was changed by another thread while a call began")
    _CALL.set(call)
    return call


def leave(pruner: Pruner, depth: int) -> ForwardCall | None:
    """A module at `depth`, the base model or the text model, is done, and with the outer of them the call.

    Returns:
        the call; None if none was begun.
    """
    call = _CALL.get()
    if call is not None and call.pruner is not pruner:
        call = _drop_interrupted()
    if call is None or call.pruner is not pruner or call.depth < depth:
        return None
    call.depth = depth - 1
    call.release_cache()
    if depth <= max(call.outermost, len(pruner.heads)):
        _end(call)
    return call


@contextmanager
def guarded() -> Iterator[None]:
    """Around code of others, as a policy's: calls that it begins and does not end are taken off the stack."""
    before = _CALL.get()
    try:
        yield
    finally:
        while (call := _CALL.get()) is not None and call is not before:
            _end(call)


def forget(pruner: Pruner) -> None:
    """Drop what interrupted calls left in this thread, and in the pruner."""
    _drop_interrupted()
    pruner.in_flight.clear()


def _drop_interrupted() -> ForwardCall | None:
    """The innermost call on the stack that still runs; those above it, left behind by an interrupt, are dropped."""
    while (call := _CALL.get()) is not None and not call.running:
        _end(call)
    return call


def _end(call: ForwardCall) -> None:
    call.pruner.in_flight.pop(id(call), None)
    call.release_cache()
    _CALL.set(call.outer)
    call.frame = call.outer = None
