"""The best-scored tokens, in their original order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import check_picks
from .dispatch import call


def topk_gather(
    scores: Tensor, features: Tensor, k: int, mask: Tensor | None = None, positions: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Select the k best-scored tokens and gather their features and positions; one kernel on a GPU.

    The library itself uses the indices only (`topk_select`); it gathers later, from other tensors.

    Args:
        scores: (B, N), floating; NaN counts as infinity.
        features: (B, N, D), any dtype.
        k: tokens to keep, 1 <= k <= N.
        mask: (B, N) bool, True for candidates. None: all.
        positions: (B, N) or (P, B, N) int64, position ids (P planes under mRoPE), gathered in the same way.

    Returns:
        indices (B, k) int64, ascending; gathered features (B, k, D), which gradients flow through; and, if given,
        positions (B, k) or (P, B, k). Among equal scores the lowest index wins. If a row has fewer than k candidates,
        its last indices are -1, and their features and positions are 0.

    Raises:
        ValueError: if k or a shape does not fit.
    """
    if scores.ndim != 2 or features.shape[:2] != scores.shape or features.ndim != 3:
        raise ValueError(
            f"scores must be (B, N) and features (B, N, D), got {tuple(scores.shape)} and {tuple(features.shape)}"
        )
    check_picks(k, *scores.shape, mask=mask)
    if positions is None:
        gathered, indices, _ = torch.ops.tokenprune.topk_gather(scores, features, k, mask, None)
        return indices, gathered
    planes = positions if positions.ndim == 3 else positions[None]
    if planes.shape[1:] != scores.shape:
        raise ValueError(f"positions must end in (B, N) = {tuple(scores.shape)}, got {tuple(positions.shape)}")
    gathered, indices, moved = torch.ops.tokenprune.topk_gather(scores, features, k, mask, planes)
    return indices, gathered, moved if positions.ndim == 3 else moved[0]


def topk_select(scores: Tensor, k: int) -> Tensor:
    """Indices (k,) int64 of the k largest of (N,) scores, ascending, 0 <= k <= N; the lowest index wins a tie."""
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    if scores.device.type == "cpu":  # a tenth of the time that the op takes, whose features nobody wants here
        scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.finfo(scores.dtype).min)
        return scores.sort(descending=True, stable=True).indices[:k].sort().values
    return topk_gather(scores[None], scores[None, :, None], k)[0][0]


@torch.library.custom_op(
    "tokenprune::topk_gather",
    mutates_args=(),
    schema="(Tensor scores, Tensor features, SymInt k, Tensor? mask, Tensor? positions) -> (Tensor, Tensor, Tensor)",
)
def _topk_gather(
    scores: Tensor, features: Tensor, k: int, mask: Tensor | None, positions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    indices, gathered, moved = call("topk_gather", scores, features, k, mask, positions)
    return gathered, indices, moved


@_topk_gather.register_fake
def _(
    scores: Tensor, features: Tensor, k: int, mask: Tensor | None, positions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    batch = len(scores)
    return (
        features.new_empty(batch, k, features.shape[2]),
        scores.new_empty(batch, k, dtype=torch.int64),
        scores.new_empty(0 if positions is None else len(positions), batch, k, dtype=torch.int64),
    )


def _keep_indices(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[1])
    ctx.n = inputs[1].shape[1]


def _scatter_back(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    (indices,) = ctx.saved_tensors
    gradient = gradient.masked_fill((indices < 0)[..., None], 0)
    index = indices.clamp(min=0)[..., None].expand_as(gradient)
    back = gradient.new_zeros(len(gradient), ctx.n, gradient.shape[2]).scatter_add(1, index, gradient)
    return None, back, None, None, None


_topk_gather.register_autograd(_scatter_back, setup_context=_keep_indices)
