"""Similarity of visual tokens to the question, shared by policies that read the text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .types import VisualTokens


def question_similarity(tokens: VisualTokens) -> Tensor:
    """Cosine similarity of each text token of the question with each projected visual token.

    Papers compare with CLIP's text encoder, which LLaVA and Qwen-VL checkpoints do not contain. The language model's
    input embeddings of the question are used in its place. They are weak evidence on a model whose projector was not
    trained towards its word embeddings.

    Returns:
        (Q, N) float32; Q is 0 without a question.
    """
    return cosines(question_words(tokens), tokens.features)


def question_words(tokens: VisualTokens) -> Tensor:
    """(Q, D) embeddings of the question's text tokens; Q is 0 without a question."""
    return tokens.features[:0] if tokens.question is None else tokens.question


def cosines(words: Tensor, features: Tensor) -> Tensor:
    """(..., Q, N) float32 cosine similarities of (..., Q, D) words with (..., N, D) tokens."""
    return F.normalize(words.float(), dim=-1) @ F.normalize(features.float(), dim=-1).mT


def standardised(scores: Tensor) -> Tensor:
    """(..., N) scores minus their mean, divided by their standard deviation; about 0 where they are equal."""
    deviation, mean = torch.std_mean(scores, dim=-1, keepdim=True, correction=0)
    rounding = 1e-5 * scores.abs().amax(-1, keepdim=True) + 1e-30
    return (scores - mean) / deviation.maximum(rounding)


def between_zero_and_one(scores: Tensor) -> Tensor:
    """(N,) scores, scaled so that the smallest is 0 and the largest 1; all ones where they are equal."""
    low, high = scores.min(), scores.max()
    return torch.where(high > low, (scores - low) / (high - low).clamp(min=1e-12), 1.0)
