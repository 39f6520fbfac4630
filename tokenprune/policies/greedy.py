"""Greedy selection ops for all visual inputs of a batch at once, shared by several policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..device import to_device
from .types import Selection, VisualTokens


def greedy_selections(
    op: Callable[..., Tensor],
    tokens: Sequence[VisualTokens],
    n_keep: Sequence[int],
    first: Sequence[Tensor] | None = None,
    quality: Sequence[Tensor] | None = None,
    **options: Any,
) -> list[Selection]:
    """Selections by `max_min_select`, `max_sum_select` or `dpp_select`.

    Args:
        op: one of these.
        tokens: the visual inputs, of any sizes.
        n_keep: for each, how many tokens stay.
        first: for each, the first pick or picks, int64, () or (S,); None: the op finds the first pick.
        quality: for each, (N,) as `dpp_select` takes it.
        **options: of the op, the same for all.
    """
    features = [each.features for each in tokens]
    if not features:
        return []
    if features[0].device.type == "cpu":  # padding would be wasted there
        picks = _select_alike(op, features, n_keep, first, quality, **options)
    else:
        picks = select_padded(op, features, n_keep, first, quality, **options)
    ordered = _padded(picks, max(map(len, features))).sort(1).values
    return [Selection(row[: len(each)]) for row, each in zip(ordered, picks, strict=True)]


def _padded(tensors: Sequence[Tensor], value: float = 0) -> Tensor:
    """(B, N, ...) of (N, ...) tensors, padded at the end to the longest; one launch where none is longer."""
    if len({len(each) for each in tensors}) == 1:
        return torch.stack([*tensors])
    return pad_sequence([*tensors], batch_first=True, padding_value=value)


def _select_alike(
    op: Callable[..., Tensor],
    features: Sequence[Tensor],
    n_keep: Sequence[int],
    first: Sequence[Tensor] | None,
    quality: Sequence[Tensor] | None,
    **options: Any,
) -> list[Tensor]:
    """Picks for inputs of different sizes, in one call for those that are alike in tokens, budget and first picks.

    Arguments and result are those of `select_padded`.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, (x, k) in enumerate(zip(features, n_keep, strict=True)):
        alike.setdefault((len(x), k, 0 if first is None else first[i].numel()), []).append(i)
    picks: dict[int, Tensor] = {}
    for (_, k, _), some in alike.items():
        more = dict(options)
        if first is not None:
            more["first"] = torch.stack([first[i].reshape(-1) for i in some])
        if quality is not None:
            more["quality"] = torch.stack([quality[i] for i in some])
        x = features[some[0]][None] if len(some) == 1 else torch.stack([features[i] for i in some])
        picks |= dict(zip(some, op(x, k=k, **more), strict=True))
    return [picks[i] for i in range(len(features))]


def select_padded(
    op: Callable[..., Tensor],
    features: Sequence[Tensor],
    n_keep: Sequence[int],
    first: Sequence[Tensor] | None,
    quality: Sequence[Tensor] | None = None,
    **options: Any,
) -> list[Tensor]:
    """Picks for inputs of different sizes in one call, padded to the longest, without waiting for the device.

    Args:
        op, n_keep, first, quality, **options: as `greedy_selections` takes them.
        features: for each input, (N, D).

    Returns:
        for each input, its (k,) int64 picks in the order picked.
    """
    device, longest = features[0].device, max(map(len, features))
    more: dict[str, Any] = dict(options)
    if any(len(x) < longest for x in features):
        sizes = torch.tensor([len(x) for x in features])
        more["mask"] = to_device(torch.arange(longest) < sizes[:, None], device)
    batch = features[0][None] if len(features) == 1 else _padded(features)
    if first is not None:
        more["first"] = _padded([each.reshape(-1) for each in first], -1)
    if quality is not None:
        more["quality"] = _padded(quality)
    picks = op(batch, k=max(n_keep), **more)
    # Greedy picks for k are the first k of the picks for any larger number.
    return [row[:k] for row, k in zip(picks, n_keep, strict=True)]
