"""What policies with a greedy op share: all visual inputs of a batch in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..visual import Selection, VisualTokens


def greedy_selections(
    op: Callable[..., Tensor],
    tokens: Sequence[VisualTokens],
    n_keep: Sequence[int],
    first: Sequence[Tensor] | None = None,
) -> list[Selection]:
    """Selections by `max_min_select` or `max_sum_select`.

    Args:
        op: one of these.
        tokens: the visual inputs, of any sizes.
        n_keep: for each, how many.
        first: for each, the first pick, an int64 scalar; None: the op's own start.
    """
    features = [each.features for each in tokens]
    if not features:
        return []
    if features[0].device.type == "cpu":  # image by image there anyhow: do not copy and pad
        starts = [None] * len(features) if first is None else [pivot[None] for pivot in first]
        picks = [op(x[None], k, start)[0] for x, k, start in zip(features, n_keep, starts, strict=True)]
    else:
        picks = together(op, features, n_keep, first)
    return [Selection(each.sort().values) for each in picks]


def together(
    op: Callable[..., Tensor], features: Sequence[Tensor], n_keep: Sequence[int], first: Sequence[Tensor] | None
) -> list[Tensor]:
    """Picks of all inputs in one call, without waiting for the device."""
    device, longest = features[0].device, max(map(len, features))
    mask = None
    if any(len(x) < longest for x in features):
        sizes = torch.tensor([len(x) for x in features])
        mask = (torch.arange(longest) < sizes[:, None]).to(device, non_blocking=True)
    starts = None if first is None else torch.stack([*first])
    picks = op(pad_sequence([*features], batch_first=True), max(n_keep), starts, mask)
    # the first k of more picks are the picks of k
    return [row[:k] for row, k in zip(picks, n_keep, strict=True)]
