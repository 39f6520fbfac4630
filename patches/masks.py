"""Reading the padding of a batch from whatever attention mask the text model was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .cache import cache_among, layout_of


def padding_mask(mask: Any, cache: Any, batch: int, length: int) -> Tensor | None:
    """The 2-D padding mask over logical columns, (B, past + length) bool, or None for no padding.

    A static cache comes with a 4-D mask that `generate` has built; its padding is read back from the
    last query's row.

    Raises:
        ValueError: for masks that cannot be followed; the message names the alternative.
    """
    if isinstance(mask, dict):  # one per layer type
        mask = mask.get("full_attention", mask.get("sliding_attention"))
    if mask is None:
        return None
    if mask.ndim == 2:
        return mask.bool()
    if mask.ndim != 4 or not getattr(cache, "is_compileable", False):
        raise ValueError(
            f"pruning cannot follow a custom attention mask of shape {tuple(mask.shape)}; pass a 2-D padding mask"
        )
    past = int(cache.get_seq_length())
    if layout_of(cache) is None:
        visible = mask[:, 0, -1, : past + length]
        return visible if visible.dtype == torch.bool else visible == 0
    # Its columns are those that the cache holds, its values those of the columns that the caller counts.
    noted = cache.callers_mask
    if noted is None:
        return None
    if noted is not ... and noted.ndim == 2 and noted.shape[1] == past + length:
        return noted.bool()
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
