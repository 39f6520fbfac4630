"""Attention masks: read as padding, refused where they cannot be followed, cut down, and made for decoder layers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .cache import cache_among, cache_name, layout_of
from .cache_errors import PrunedCacheError
from .packing import Packing
from .past import Past


def padding_mask(given: Any, cache: Any, batch: int, length: int, whole: bool = False) -> Tensor | None:
    """The 2-D padding mask over logical columns, (B, past + length) bool, or None for no padding.

    A static cache comes with a 4-D mask that `generate` has built; its padding is read back from the
    last query's row.

    Args:
        given: mask or masks of a call.
        cache: the KV cache, or None.
        batch: rows.
        length: columns of the call.
        whole: of a pruned static cache, the mask may go on for columns that are yet to be fed: the device is not waited
            for then.

    Raises:
        ValueError: for masks that cannot be followed; the message names the alternative.
    """
    if isinstance(given, dict):  # one per layer type
        given = given.get("full_attention", given.get("sliding_attention"))
    if given is None:
        return None
    mask: Tensor = given
    if mask.ndim == 2:
        return mask.bool()
    if mask.ndim != 4 or not getattr(cache, "is_compileable", False):
        raise ValueError(
            f"pruning cannot follow a custom attention mask of shape {tuple(mask.shape)}; pass a 2-D padding mask"
        )
    if layout_of(cache) is None:
        visible = mask[:, 0, -1, : int(cache.get_seq_length()) + length]
        return visible if visible.dtype == torch.bool else visible == 0
    # Its columns are those that the cache holds, its values those of the columns that the caller counts.
    if cache.callers_mask is None:
        return None
    if cache.callers_mask is not ... and cache.callers_mask.ndim == 2:
        noted: Tensor = cache.callers_mask.bool()
        if whole and cache.static_columns is not None:
            return noted
        total = int(cache.get_seq_length()) + length
        if noted.shape[1] == total or cache.static_columns is not None:
            return noted[:, :total]
    raise ValueError(
        "pruning cannot follow a ready-made attention mask on a static cache that was pruned before, outside of "
        "generate(); pass a 2-D padding mask, or use the default (dynamic) cache"
    )


def refuse_windows(mask: Any) -> None:
    """Raise `ValueError` for masks that `generate` has made of sliding windows for a static cache."""
    if isinstance(mask, dict) and "sliding_attention" in mask:
        raise ValueError(
            f"pruning cannot follow ready-made attention masks of layers of type {', '.join(map(repr, mask))}; use the "
            "default (dynamic) cache, with which the model builds its own"
        )


def refuse_packed(kwargs: Mapping[str, Any], text: Any, positions: Literal["1d", "mrope"]) -> None:
    """Raise for several samples in one row, which transformers keeps apart by position ids that start again.

    A pruned sequence has gaps in its positions and an explicit mask, under which the samples would see each other.

    Args:
        kwargs: arguments of the text model.
        text: the text model.
        positions: kind of the family's positions.

    Raises:
        ValueError: naming the argument.
    """
    advice = "pass the samples as rows of a padded batch, or call remove_pruning(model) to train on packed rows"
    for name in ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{name}: several samples packed into one row cannot be pruned; {advice}")
    ids, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
    if ids is None or mask is not None or (positions == "mrope" and (ids.ndim != 3 or len(ids) != 4)):
        return
    ids = ids[0] if ids.ndim == 3 else ids
    steps = ids.reshape(-1, ids.shape[-1]).diff()
    cached = kwargs.get("use_cache")
    cached = text.config.use_cache if cached is None else cached
    # Without a cache transformers takes any gap for a border; with one only FlashAttention sees one.
    if not cached and cache_among(kwargs) is None:
        packed = bool((steps != 1).any())
    else:
        packed = "flash" in (text.config._attn_implementation or "") and bool((steps <= 0).any())
    if packed:
        raise ValueError(
            "position_ids start again or have gaps within a row: several samples packed into one row cannot be "
            f"pruned; {advice}"
        )


def gather_block_masks(masks: Any, packing: Packing, past: Past, valid: Tensor, window: int | None) -> Any:
    """Attention masks of the columns that stay, for families that build masks above the text model.

    They do so because pictures attend to themselves both ways.

    Args:
        masks: 4-D (B or 1, 1, L, P + L), bool or additive, or a dict of them by kind of layer; kernels
            that take padding masks alone have 2-D ones, or none.
        packing: which of this call's L columns stay.
        past: the P columns that the cache held.
        valid: (B, P + M) bool, False at padding.
        window: of sliding-window layers, in columns that are left.

    Raises:
        PrunedCacheError: for sliding-window layers that have a past.
    """
    if not isinstance(masks, dict):
        return _gather_block_mask(masks, packing, past, valid)
    if past.physical and "sliding_attention" in masks:
        raise PrunedCacheError(
            "a picture in a later turn is not supported on sliding-window layers with pruning; start a fresh cache"
        )
    full = _gather_block_mask(masks["full_attention"], packing, past, valid)
    short = {"full_attention": full}
    if "sliding_attention" in masks:
        short["sliding_attention"] = _within(full, window) if full.ndim == 4 else full
    return short


def _gather_block_mask(mask: Any, packing: Packing, past: Past, valid: Tensor) -> Tensor:
    if mask is None or mask.ndim != 4:
        return valid
    batch, length = packing.index.shape
    held = torch.arange(past.physical, device=valid.device).expand(batch, -1)
    columns = torch.cat([held, past.physical + packing.index], 1)
    mask = mask.expand(batch, *mask.shape[1:])
    rows = mask.gather(2, packing.index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    short = rows.gather(3, columns[:, None, None].expand(-1, mask.shape[1], length, -1))
    itself = torch.eye(length, dtype=torch.bool, device=valid.device)
    itself = torch.nn.functional.pad(itself, (past.physical, 0))
    # Padding sees itself alone: a row that sees nothing would be NaN.
    seen = torch.where(packing.valid[:, None, :, None], valid[:, None, None], itself)
    if short.dtype == torch.bool:
        return torch.where(packing.valid[:, None, :, None], short & seen, seen)
    lowest = torch.finfo(short.dtype).min
    return torch.where(packing.valid[:, None, :, None], short, 0).masked_fill(~seen, lowest)


def _within(mask: Tensor, window: int | None) -> Tensor:
    """Columns at most `window` back, of a mask without a past."""
    if window is None:
        return mask
    near = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu(1 - window)
    return mask & near if mask.dtype == torch.bool else mask.masked_fill(~near, torch.finfo(mask.dtype).min)


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
        sizes: tuple[int, int] = self._cache.get_mask_sizes(query, self._layer)
        return sizes


def window_at(config: Any, layer: int) -> int | None:
    """The sliding window of a decoder layer, in columns; None where it attends to all.

    Configs without `layer_types` (Mistral's) that name a window mean all layers.
    """
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    return window if kinds is None or kinds[layer] == "sliding_attention" else None


class LayerMasks:
    """Attention masks of decoder layers, made by transformers for the columns that a layer holds.

    What transformers' functions take is looked up beforehand: a compiler would look it up at every step that it traces.

    Args:
        config: of the text model.
    """

    def __init__(self, config: Any):
        from transformers import masking_utils

        self.config, self._cache_name = config, cache_name()
        self._whole, self._sliding = masking_utils.create_causal_mask, masking_utils.create_sliding_window_causal_mask
        accepted = frozenset(inspect.signature(self._whole).parameters)
        self._embeds_name = "inputs_embeds" if "inputs_embeds" in accepted else "input_embeds"
        self._takes_cache_position = "cache_position" in accepted

    def of(self, layer: int, hidden: Tensor, valid: Tensor, cache: Any) -> Any:
        """The mask of one layer.

        Args:
            layer: its index.
            hidden: (B, M, D), what the layer is fed.
            valid: (B, P + M) bool padding mask over its columns.
            cache: the KV cache, or None.
        """
        arguments: dict[str, Any] = dict(config=self.config, attention_mask=valid, position_ids=None)
        arguments[self._cache_name] = None if cache is None else _LayerCache(cache, layer)
        arguments[self._embeds_name] = hidden
        if self._takes_cache_position:
            arguments["cache_position"] = torch.arange(
                valid.shape[1] - hidden.shape[1], valid.shape[1], device=hidden.device
            )
        make = self._whole if window_at(self.config, layer) is None else self._sliding
        return make(**arguments)
