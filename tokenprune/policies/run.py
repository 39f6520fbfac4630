"""Runs a vision-stage policy on the visual inputs of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ..budget import apportion
from ..device import index_rows
from .answers import checked_selections
from .base import Policy
from .tiles import in_order, tiles_of
from .types import Selection, VisualTokens


def run_policy(
    policy: Policy, inputs: Sequence[VisualTokens], n_keep: Sequence[int | None], per_frame: bool | None = None
) -> list[Selection]:
    """Select from all visual inputs of a batch, and check the policy's answers.

    Args:
        policy: acts at the vision stage. It is not called for an input (or frame) of which all or nothing stays.
        inputs: the visual inputs.
        n_keep: for each, how many tokens stay; None for an adaptive policy without a budget.
        per_frame: whether the budget of a video is split over its frames and each is selected from alone; None: as
            the policy declares it.

    Returns:
        for each input, its selection, with indices on the host. Fetching them is the only wait for the device.

    Raises:
        ValueError: for an answer that is not a valid selection.
    """
    by_frame = policy.per_frame if per_frame is None else per_frame
    split = [_parts(tokens, by_frame, policy.by_tile) for tokens in inputs]
    counts = [
        [None] * len(parts) if k is None else apportion(k, [len(part) for part in parts])
        for parts, k in zip(split, n_keep, strict=True)
    ]
    calls = [
        (i, j)
        for i, (parts, ks) in enumerate(zip(split, counts, strict=True))
        for j, (part, k) in enumerate(zip(parts, ks, strict=True))
        if k is None or 0 < k < len(part)
    ]
    tokens, asked_for = [split[i][j] for i, j in calls], [counts[i][j] for i, j in calls]
    # Only adaptive policies get a None here; the signature of select_many does not mention it.
    answers = policy.select_many(tokens, cast("list[int]", asked_for)) if calls else []
    expected = asked_for if policy.exact else [None] * len(calls)
    chosen = dict(zip(calls, checked_selections(policy.label, answers, tokens, expected), strict=True))
    joined = [
        _join([(part, k, chosen.get((i, j))) for j, (part, k) in enumerate(zip(parts, ks, strict=True))])
        for i, (parts, ks) in enumerate(zip(split, counts, strict=True))
    ]
    return [
        in_order(whole, selection) if policy.by_tile else selection
        for whole, selection in zip(inputs, joined, strict=True)
    ]


def _parts(tokens: VisualTokens, by_frame: bool, by_tile: bool) -> list[VisualTokens]:
    """What is selected from alone: the frames of a video, the tiles of an image, or all of an input."""
    if by_tile and tokens.tile_borders is not None:
        return tiles_of(tokens)
    return tokens.frames() if by_frame else [tokens]


def _join(parts: list[tuple[VisualTokens, int | None, Selection | None]]) -> Selection:
    """The selection of an input from those of its parts: (part, tokens to keep, None where all or nothing stays)."""
    has_features = any(selection is not None and selection.features is not None for _, _, selection in parts)
    indices: list[Tensor] = []
    features: list[Tensor] = []
    start = 0
    for part, k, selection in parts:
        if k != 0:
            selection = selection or Selection(torch.arange(len(part)))
            indices.append(selection.indices + start)
            if has_features:
                new = selection.features
                features.append(index_rows(part.features, selection.indices) if new is None else new)
        start += len(part)
    return Selection(torch.cat(indices), torch.cat(features) if has_features else None)
