"""How like the question each visual token is, for policies that let the instruction choose."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .types import VisualTokens


def likeness(tokens: VisualTokens) -> Tensor:
    """Cosines of the question's words with projected tokens, (L, N) float32; no rows without a question.

    Papers compare with CLIP's text encoder, which LLaVA and Qwen-VL checkpoints do not carry. Input
    embeddings of the question stand in for it: weak evidence on a model whose projector was not trained
    towards its word embeddings.
    """
    words = tokens.question
    if words is None:
        words = tokens.features[:0]
    return F.normalize(words.float(), dim=-1) @ F.normalize(tokens.features.float(), dim=-1).T


def between_zero_and_one(scores: Tensor) -> Tensor:
    """(N,) scaled to [0, 1]; all ones where they are equal."""
    low, high = scores.min(), scores.max()
    return torch.where(high > low, (scores - low) / (high - low).clamp(min=1e-12), 1.0)
