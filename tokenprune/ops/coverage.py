"""Greedy facility location: tokens that cover targets."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import TokenCover, check_picks
from .dispatch import call


def coverage_select(similarity: Tensor, k: int, quality: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Greedy maximum coverage (facility location; Nemhauser et al. 1978; used by SCOPE, arXiv:2510.24214).

    The coverage of a target is its largest similarity to a pick, at least 0. Each pick is the candidate with the
    largest gain: what it adds to the coverage of all targets, summed, times its quality.

    Args:
        similarity: (B, R, N) floating, how well token n covers target r. Gains are float32 (float64 for float64). To
            weight targets, multiply its rows.
        k: tokens to pick, 1 <= k <= N.
        quality: (B, N), factors of the gains, >= 0. None: ones.
        mask: (B, N) bool, True for candidates. None: all.

    Returns:
        (B, k) int64, in the order picked, no index twice, the lowest index first among equals; -1 after a row's
        candidates are used up. The first j of k picks are the picks for j.

    Raises:
        ValueError: if k or a shape does not fit.

    Gains never grow, so after a pick only those that could be the largest are computed again.
    """
    if similarity.ndim != 3:
        raise ValueError(f"similarity must be (B, R, N), got shape {tuple(similarity.shape)}")
    batch, _, n = similarity.shape
    check_picks(k, batch, n, quality=quality, mask=mask)
    picks: Tensor = torch.ops.tokenprune.coverage_select(similarity, k, quality, mask)
    return picks


@torch.library.custom_op(
    "tokenprune::coverage_select",
    mutates_args=(),
    schema="(Tensor similarity, SymInt k, Tensor? quality, Tensor? mask) -> Tensor",
)
def _coverage(similarity: Tensor, k: int, quality: Tensor | None, mask: Tensor | None) -> Tensor:
    picks: Tensor = call("coverage_select", similarity, k, quality, mask)
    return picks


@_coverage.register_fake
def _(similarity: Tensor, k: int, quality: Tensor | None, mask: Tensor | None) -> Tensor:
    return similarity.new_empty(len(similarity), k, dtype=torch.int64)


def token_coverage_select(
    features: Tensor,
    k: int,
    quality: Tensor | None = None,
    weight: Tensor | None = None,
    cover: TokenCover | None = None,
    others: Tensor | None = None,
) -> Tensor:
    """`coverage_select` where the targets are the tokens themselves, for any number of them.

    Token n covers token r by their cosine similarity, or as `cover` says. Other targets can be added.

    Args:
        features: (B, N, D), any floating dtype; similarities are float32. A zero vector has cosine 0 with everything.
        k: tokens to pick, 1 <= k <= N.
        quality: (B, N), factors of the gains, >= 0. None: ones.
        weight: (B, N), weights of the tokens as targets, >= 0. None: ones.
        cover: how well a token covers another. None: by their cosine similarity.
        others: (B, W, N), how well token n covers each of W other targets. None: no other targets.

    Returns:
        (B, k) int64, as `coverage_select` returns it.

    Raises:
        ValueError: if k, shift, temperature or a shape does not fit.

    The matrix of similarities is made where it takes at most half a gigabyte on the CPU (11,585 tokens), and 2 GB on a
    GPU. Beyond, similarities are computed in blocks, and half a gigabyte of them is kept: of tokens that are likely to
    be picked; and on the CPU also of those that still exceed the coverage of a target. On a GPU, the host waits for
    each pick there.
    """
    if features.ndim != 3:
        raise ValueError(f"features must be (B, N, D), got shape {tuple(features.shape)}")
    batch, n = features.shape[:2]
    check_picks(k, batch, n, quality=quality, weight=weight)
    if others is not None and (others.ndim != 3 or others.shape[::2] != (batch, n)):
        raise ValueError(f"others must be (B, W, N) with B = {batch} and N = {n}, got shape {tuple(others.shape)}")
    shift, temperature = TokenCover() if cover is None else cover
    if not 0 <= shift < 1:
        raise ValueError(f"shift={shift!r} must be in [0, 1)")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature={temperature!r} must be above 0, or None")
    form = [float(shift)] if temperature is None else [float(shift), float(temperature)]
    picks: Tensor = torch.ops.tokenprune.token_coverage_select(features, k, quality, weight, form, others)
    return picks


@torch.library.custom_op(
    "tokenprune::token_coverage_select",
    mutates_args=(),
    schema="(Tensor features, SymInt k, Tensor? quality, Tensor? weight, float[] form, Tensor? others) -> Tensor",
)
def _token_coverage(
    features: Tensor,
    k: int,
    quality: Tensor | None,
    weight: Tensor | None,
    form: list[float],
    others: Tensor | None,
) -> Tensor:
    picks: Tensor = call("token_coverage_select", features, k, quality, weight, TokenCover(*form), others)
    return picks


@_token_coverage.register_fake
def _(features: Tensor, k: int, *_: object) -> Tensor:
    return features.new_empty(len(features), k, dtype=torch.int64)
