"""Attention masks of decoder layers that hold fewer columns than the layers below them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from .cache import CACHE_NAME


class _LayerCache:
    """A cache as one layer sees it: mask builders ask for the length of some layer, and get this one's."""

    def __init__(self, cache: Any, layer: int):
        self._cache, self._layer = cache, layer
        self.is_compileable = getattr(cache, "is_compileable", False)

    def get_query_offset(self, layer_idx: int | None = 0) -> Any:
        if hasattr(self._cache, "get_query_offset"):
            return self._cache.get_query_offset(self._layer)
        return self._cache.get_seq_length(self._layer)  # transformers 4, and never pruned: one length only

    def get_seq_length(self, layer_idx: int | None = 0) -> Any:
        return self.get_query_offset()

    def get_mask_sizes(self, query: Any, layer_idx: int | None = 0) -> tuple[int, int]:
        return self._cache.get_mask_sizes(query, self._layer)


def window_at(config: Any, layer: int) -> int | None:
    """The sliding window of a decoder layer, in columns; None where it attends to all.

    Configs without `layer_types` (Mistral's) that name a window mean all layers.
    """
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    return window if kinds is None or kinds[layer] == "sliding_attention" else None


def layer_mask(config: Any, layer: int, hidden: Tensor, valid: Tensor, cache: Any) -> Any:
    """The attention mask of a decoder layer, made by transformers for the columns this layer holds.

    Args:
        config: of the text model.
        layer: its index.
        hidden: (B, M, D), what the layer is fed.
        valid: (B, P + M) bool padding mask over its columns.
        cache: the KV cache, or None.
    """
    sliding = window_at(config, layer) is not None
    make = masking_utils.create_sliding_window_causal_mask if sliding else masking_utils.create_causal_mask
    accepted = inspect.signature(make).parameters
    arguments: dict[str, Any] = dict(
        config=config,
        attention_mask=valid,
        position_ids=None,
    )
    arguments[CACHE_NAME] = None if cache is None else _LayerCache(cache, layer)
    arguments["inputs_embeds" if "inputs_embeds" in accepted else "input_embeds"] = hidden
    if "cache_position" in accepted:
        arguments["cache_position"] = torch.arange(
            valid.shape[1] - hidden.shape[1], valid.shape[1], device=hidden.device
        )
    return make(**arguments)
