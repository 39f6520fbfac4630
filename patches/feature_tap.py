"""Wrapping the functions that compute visual features, to note where the features came from."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .call import innermost
from .encoder_parts import EncoderParts
from .families.base import Family, Kind
from .feature_source import FeatureSource, input_lengths, same_features
from .modules import named_arguments

logger = logging.getLogger(__name__)

_SOURCE = "_tokenprune_source"  # set on encoder outputs; they outlive the call that made them
#: The base models whose feature functions run in this thread, from the outside in, each with the call it runs in.
_ENCODING: ContextVar[tuple[tuple[Any, Any], ...]] = ContextVar("tokenprune_encoding", default=())


def encoding(base: Any) -> bool:
    """Whether the innermost call of this thread is computing the features of this base model."""
    return (base, innermost()) in _ENCODING.get()


class FeatureTap:
    """Takes the place of `get_image_features` or `get_video_features` on one instance, and calls it.

    `generate` encodes pictures before it calls the model and drops their grids on the way, so grids are noted on the
    encoder's output. It is an object instead of a closure, so that a deep copy of the model calls its own features.

    Args:
        base: the base model.
        family: its facts.
        kind: of visual input.
        listener: is called with the output and its source each time features are computed.
        parts: what acts on the vision encoder or reads it.
    """

    def __init__(
        self,
        base: Any,
        family: Family,
        kind: Kind,
        listener: Callable[[Kind, Any, FeatureSource], None],
        parts: EncoderParts,
    ):
        self.original: Callable[..., Any] = getattr(base, self.name_of(kind))
        functools.update_wrapper(self, self.original)  # generate() reads the signature
        self.base, self.family, self.kind, self.listener = base, family, kind, listener
        self.parts = parts
        self._noted: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # outputs by their id

    @staticmethod
    def name_of(kind: Kind) -> str:
        """The feature function of a kind of visual input."""
        return f"get_{kind}_features"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        running, here = _ENCODING.get(), (self.base, innermost())
        if here in running:  # Qwen3-VL encodes videos through its image function: the outer call counts
            return self.original(*args, **kwargs)
        token = _ENCODING.set((*running, here))
        try:
            return self._encode(*args, **kwargs)
        finally:
            _ENCODING.reset(token)

    def _encode(self, *args: Any, **kwargs: Any) -> Any:
        named = named_arguments(self.original, args, kwargs)
        # Without the pixels: what is noted here lives as long as the features do. Sizes and grids are read one by one.
        arguments = {
            name: value.cpu() if isinstance(value, Tensor) and value.dtype == torch.int64 else value
            for name, value in named.items()
            if "pixel_values" not in name
        }
        with self.parts.running(self.kind, arguments) as run:
            output = self.original(*args, **kwargs)
        lengths = input_lengths(self.family, self.base.config, self.kind, output, arguments)
        activations = run.activations(self.base, self.family, lengths, arguments, named)
        source = FeatureSource(len(lengths), arguments, activations)
        if not isinstance(output, (Tensor, list, tuple)):
            setattr(output, _SOURCE, source)
            self._noted[id(output)] = output
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("encoder: %d %s inputs of %s features", len(lengths), self.kind, lengths)
        self.listener(self.kind, output, source)
        return output

    def source_of(self, output: Any) -> FeatureSource | None:
        """Where features that were computed beforehand came from; None if that was without pruning.

        What carries them to the model's device (`generate`, accelerate) makes a new container of them, without the
        note. Then it is the note of the features that they were copied from.
        """
        if not hasattr(output, _SOURCE):
            output = next((noted for noted in list(self._noted.values()) if same_features(noted, output)), None)
        source: FeatureSource | None = getattr(output, _SOURCE, None)
        return source
