"""Steps that a compiler traces: calls that prune nothing, on a cache that was pruned before.

A compiler follows neither frames nor context variables, in which a call keeps its state. A traced step needs little of
it, which is held by the cache until the text model is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .call import Calls
from .config import PruningConfig
from .decoder_call import DecoderContinuation
from .text_inputs import continue_pruned_cache


@dataclass(eq=False)
class CompiledStep:
    """State of such a step; the attributes are those of `ForwardCall`."""

    continuation: DecoderContinuation | None = None
    decoder: None = None
    shrunk: bool = True
    running: bool = True


def is_traced(calls: Calls) -> bool:
    """Whether a compiler traces a call in which no picture is fed: the base model begins a call for those."""
    return torch.compiler.is_compiling() and not calls.in_flight


def begin_step(config: PruningConfig, cache: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the text model on a pruned cache, which holds the step from now on."""
    step = CompiledStep()
    new = continue_pruned_cache(config, step, cache.layout, arguments)
    cache.hooked = step
    return new


def step_on(cache: Any) -> CompiledStep | None:
    """The step that reads a cache at the moment; None: there is none."""
    step = getattr(cache, "hooked", None)
    return step if isinstance(step, CompiledStep) else None


def end_step(cache: Any) -> None:
    """The text model is left."""
    if step_on(cache) is not None:
        cache.hooked, cache.callers_mask = None, ...
