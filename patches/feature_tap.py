"""Listening to the functions that compute visual features: where features came from travels with them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .call import innermost
from .encoder_capture import EncoderListener, Heard
from .encoder_stage import TowerStage
from .families.base import Kind

_SOURCE = "_tokenprune_source"  # set on encoder outputs; they outlive the call that made them
#: The base models whose feature functions run in this thread, from the outside in, each with the call it runs in.
_TAPPED: ContextVar[tuple[tuple[Any, Any], ...]] = ContextVar("tokenprune_tapped", default=())


def encoding(base: Any) -> bool:
    """Whether the call on top of this thread's stack is computing the features of this base model."""
    return (base, innermost()) in _TAPPED.get()


@dataclass(frozen=True)
class Source:
    """Where visual features came from: how many inputs, the arguments of the feature function, and what
    a policy wanted to hear of the encoder meanwhile."""

    count: int
    arguments: Mapping[str, Any]
    heard: Heard | None = None
    generation: Generation = field(default_factory=lambda: Generation())


@dataclass
class Generation:
    """How long the prompt is of a `generate` without a KV cache, which feeds it again with the answer so far.

    Attributes:
        prompt_length: of the prompt.
        prepared: whether `generate` has prepared the call that comes next.
    """

    prompt_length: int = 0
    prepared: bool = False

    def prepare(self, length: int, first: bool) -> None:
        """A step of `length` tokens comes next."""
        if first:
            self.prompt_length = length
        self.prepared = True

    def take(self) -> int | None:
        """Length of the prompt in the call that begins; None in any other call."""
        prepared, self.prepared = self.prepared, False
        return self.prompt_length if prepared else None


def _copied(one: Any, other: Any) -> bool:
    """Whether containers hold the same features: the very tensors, or equal ones on another device."""
    left, right = (tree_leaves(getattr(output, "pooler_output", output)) for output in (one, other))
    return len(left) == len(right) and all(
        a is b or (a.device != b.device and a.dtype == b.dtype and torch.equal(a.to(b.device), b))
        for a, b in zip(left, right, strict=True)
    )


def feature_lengths(output: Any) -> list[int]:
    """Number of features of each visual input; empty where the container does not tell.

    Of each tile, picture or row of the batch, as the model returns them.
    """
    features = getattr(output, "pooler_output", output)
    if isinstance(features, (list, tuple)) and features and isinstance(features[0], (list, tuple)):
        features = features[0]  # (features per input, deepstack planes), transformers 4
    if isinstance(features, Tensor):
        return [features.shape[1:-1].numel()] * len(features) if features.ndim in (3, 4) else []
    if all(isinstance(f, Tensor) for f in features):  # (N, D), or (frames, N, D) of a video
        return [f.shape[:-1].numel() for f in features]
    return []


class FeatureTap:
    """Stands in for `get_image_features` or `get_video_features` of one instance, and only listens.

    `generate` encodes pictures before it calls the model and drops their grids on the way, so they
    are noted on the encoder's output. An object, not a closure, so that a deep copy of the model
    calls its own features.
    """

    def __init__(
        self,
        base: Any,
        kind: Kind,
        original: Callable[..., Any],
        listener: Callable[[Kind, Any, Source], None],
        lengths: Callable[[list[int]], list[int]],
        encoder: EncoderListener | None = None,
        tower: TowerStage | None = None,
    ):
        functools.update_wrapper(self, original)  # generate() reads the signature
        self.base, self.kind, self.original, self.listener, self.lengths = base, kind, original, listener, lengths
        self.encoder, self.tower = encoder, tower
        self._noted: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by id, what has a note

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        running, here = _TAPPED.get(), (self.base, innermost())
        if here in running:  # Qwen3-VL encodes videos through its image function: the outer call counts
            return self.original(*args, **kwargs)
        token = _TAPPED.set((*running, here))
        try:
            return self._listen(*args, **kwargs)
        finally:
            _TAPPED.reset(token)

    def _listen(self, *args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(self.original).bind_partial(*args, **kwargs).arguments
        arguments = {**arguments, **arguments.pop("kwargs", {})}
        # Not the pixels: what is noted here lives as long as the features do. Sizes and grids are read one by one.
        arguments = {
            name: value.cpu() if isinstance(value, Tensor) and value.dtype == torch.int64 else value
            for name, value in arguments.items()
            if not name.startswith("pixel_values")
        }
        with contextlib.ExitStack() as stack:
            notes = None if self.encoder is None else stack.enter_context(self.encoder.listening(arguments))
            cut = None if self.tower is None else stack.enter_context(self.tower.cutting())
            output = self.original(*args, **kwargs)
        lengths = self.lengths(feature_lengths(output))
        heard = None
        if self.encoder is not None and notes is not None:
            whole = {} if cut is None else {"whole": cut.whole}
            heard = self.encoder.heard(notes, self.kind, lengths, arguments, **whole)
        if self.tower is not None and cut is not None:
            heard = self.tower.heard(cut, heard or Heard(), self.kind, lengths, arguments)
        source = Source(len(lengths), arguments, heard)
        if not isinstance(output, (Tensor, list, tuple)):
            setattr(output, _SOURCE, source)
            self._noted[id(output)] = output
        self.listener(self.kind, output, source)
        return output

    def source_of(self, output: Any) -> Source | None:
        """Where features that were computed beforehand came from; None if that was without pruning.

        What carries them to the model's device (`generate`, accelerate) makes a new container of them, without the
        note: then it is that of the features they were copied from.
        """
        if not hasattr(output, _SOURCE):
            output = next((noted for noted in list(self._noted.values()) if _copied(noted, output)), None)
        return getattr(output, _SOURCE, None)
