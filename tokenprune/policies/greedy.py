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
        sizes = torch.tensor([len(x) for x in features])
        mask = None
        if len(sizes.unique()) > 1:
            mask = (torch.arange(int(sizes.max())) < sizes[:, None]).to(features[0].device, non_blocking=True)
        together = op(
            pad_sequence(features, batch_first=True),
            max(n_keep),
            None if first is None else torch.stack([*first]),
            mask,
        )
        # the first k of more picks are the picks of k
        picks = [row[:k] for row, k in zip(together, n_keep, strict=True)]
    return [Selection(each.sort().values) for each in picks]
