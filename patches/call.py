"""One forward call in flight: its state, and the stack that holds it in this thread.

A call begins at the outermost module of the pruned model that has something to do (a head that was given labels, else
the base model, else the text model) and ends with the base model, or with a text model that is called alone.
torch runs forward hooks after an `Exception` but not after a KeyboardInterrupt or SystemExit, so a call can be left on
the stack although it is over. Therefore every module that enters checks whether the call it finds is still running:
whether its frame is on the stack of this thread.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from torch import Tensor, nn

from .cache import Layout
from .decoder_call import DecoderCall, DecoderContinuation
from .head import LogitsToKeep
from .packing import Packing
from .visual_inputs import VisualInputs


@dataclass(eq=False)
class ForwardCall:
    """State of one forward call.

    Attributes:
        calls: of the pruned model whose call it is.
        outermost: depth of the module at which the call began, counted from the outside in: wrappers and the head,
            the base model, the text model.
        depth: depth of the innermost module that has been entered.
        frame: the frame that runs the outermost module.
        thread: identifier of the thread.
        labels: a copy of the caller's labels, (B, L), which the head computes its loss with; it shrinks in place.
        logits_to_keep: which columns the head computes logits for, if it was given some.
        visual: what is visual in this call; None without pictures.
        layout: what the KV cache holds once the text model has run.
        base_arguments: of the base model, where it builds masks.
        shrunk: whether this call's sequence differs from what the caller passed.
        decoder: state of the decoder stage in a call that may drop tokens there.
        continuation: the same in a call that drops none, on a cache that was cut at decoder layers.
        length: of the sequence that the text model was to be fed.
        packing: which of the caller's columns are left, in the last layer.
        cache: a KV cache that was pruned before.
        outer: the call around this one, of another pruned model or of the same.
    """

    calls: Calls
    outermost: int
    depth: int
    frame: FrameType | None
    thread: int = field(default_factory=threading.get_ident)
    labels: Tensor | None = None
    logits_to_keep: LogitsToKeep | None = None
    visual: VisualInputs | None = None
    layout: Layout | None = None
    base_arguments: Mapping[str, Any] = field(default_factory=dict)
    shrunk: bool = False
    decoder: DecoderCall | None = None
    continuation: DecoderContinuation | None = None
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
        """Whether a module at `depth` is called by the model itself, not by a user's hook on the head.

        Only a call that a head began is looked at, and only where it reaches the base model.
        """
        heads = self.calls.heads
        if self.outermost >= len(heads) or depth != len(heads) or heads[-1] is self.calls.base:
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
        """The cache is not read any more."""
        if self.cache is not None:
            self.cache.callers_mask = ...
            self.cache.hooked = self.cache = None

    def outputs_follow(self, packing: Packing, length: int) -> None:
        """Shrink what the head needs with the sequence, which had `length` columns: labels, columns of logits."""
        self.packing = packing.after(self.packing)
        if self.labels is not None:
            self.labels.data = packing.labels(self.labels)
        if self.logits_to_keep is not None:
            self.logits_to_keep.follow(packing, length)


def calling_frame() -> FrameType:
    """The frame from outside of this package that has called into it.

    Frames in between do not last as long as the module that is called: a compiler cuts functions into several.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__package__", "") == __package__:
        frame = frame.f_back
    return frame


#: The innermost call of each thread and task; the calls around it hang on it.
_CALL: ContextVar[ForwardCall | None] = ContextVar("tokenprune_call", default=None)


def innermost() -> ForwardCall | None:
    """The innermost call of this thread, of any model."""
    return _CALL.get()


class Calls:
    """The calls of one pruned model.

    Args:
        heads: the modules above its base model; the last may be the base model itself.
        base: the base model.

    Attributes:
        in_flight: calls that have begun and not ended, in all threads, by id.
        closed: whether the pruning has been removed, so that none may begin.
    """

    def __init__(self, heads: Sequence[nn.Module], base: nn.Module):
        self.heads, self.base = tuple(heads), base
        self.in_flight: dict[int, ForwardCall] = {}
        self.closed = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Calls:
        """The calls of a copied model, of which none is in flight."""
        new = object.__new__(type(self))
        memo[id(self)] = new
        new.heads, new.base = copy.deepcopy(self.heads, memo), copy.deepcopy(self.base, memo)
        new.in_flight, new.closed = {}, self.closed
        return new

    @property
    def any_running(self) -> bool:
        """Whether a call runs, in this thread or in another."""
        return any(call.running for call in list(self.in_flight.values()))

    def current(self) -> ForwardCall | None:
        """The call of this model that runs in this thread; None between calls."""
        if not self.in_flight:  # a compiler can follow this, and no context variable
            return None
        call = _CALL.get()
        return call if call is not None and call.calls is self else None

    def enter(self, depth: int, frame: FrameType) -> ForwardCall:
        """The call that a module at `depth` belongs to: that of the module around it, or a new one.

        Args:
            depth: of the module that is entered.
            frame: that calls it.

        Raises:
            RuntimeError: if the pruning was removed or replaced in this moment.
        """
        call = self.current()
        heads = len(self.heads)
        follows = call is not None and (call.depth == depth - 1 if depth > heads else call.depth < depth)
        if call is not None and follows and call.here and call.running and call.reaches(depth):
            call.depth = depth
            return call
        return self.begin(depth, frame)

    def begin(self, depth: int, frame: FrameType) -> ForwardCall:
        """Begin a call, inside of the one that runs, if any. Raises as `enter` does."""
        self._drop_dead()
        call = ForwardCall(self, depth, depth, frame, outer=_drop_interrupted())
        self.in_flight[id(call)] = call
        if self.closed:
            del self.in_flight[id(call)]
            raise RuntimeError("the pruning of this model was changed by another thread while a call began")
        _CALL.set(call)
        return call

    def _drop_dead(self) -> None:
        """Forget calls that an interrupt has left behind, in any thread: a compiled step has to see none in flight."""
        for key, call in list(self.in_flight.items()):
            if not call.running:
                self.in_flight.pop(key, None)
                call.release_cache()

    def leave(self, depth: int) -> ForwardCall | None:
        """The base model or the text model, at `depth`, is done. The call ends with the outer one of those it entered.

        Returns:
            the call; None if none was begun.
        """
        if not self.in_flight:
            return None
        call = _CALL.get()
        if call is not None and call.calls is not self:
            call = _drop_interrupted()
        if call is None or call.calls is not self or call.depth < depth:
            return None
        call.depth = depth - 1
        call.release_cache()
        if depth <= max(call.outermost, len(self.heads)):
            _end(call)
        return call

    def forget(self) -> None:
        """Drop what interrupted calls left in this thread, and here."""
        _drop_interrupted()
        self.in_flight.clear()


@contextmanager
def guarded() -> Iterator[None]:
    """Around code of others, as a policy's: calls that it begins and does not end are taken off the stack."""
    before = _CALL.get()
    try:
        yield
    finally:
        while (call := _CALL.get()) is not None and call is not before:
            _end(call)


@contextmanager
def unchanged(embeds: Tensor, label: str) -> Iterator[None]:
    """Around the choice of the policy of that label, guarded.

    Raises:
        ValueError: if it has changed the model's embeddings in place.
    """
    version = None if embeds.is_inference() else embeds._version
    with guarded():
        yield
    if version is not None and embeds._version != version:
        raise ValueError(f"policy {label!r} must not change tokens.features in place; return new features")


def _drop_interrupted() -> ForwardCall | None:
    """The innermost call on the stack that still runs; those above it, left behind by an interrupt, are dropped."""
    while (call := _CALL.get()) is not None and not call.running:
        _end(call)
    return call


def _end(call: ForwardCall) -> None:
    call.calls.in_flight.pop(id(call), None)
    call.release_cache()
    _CALL.set(call.outer)
    call.frame = call.outer = None
