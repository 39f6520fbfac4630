"""ERASE: patches in which much is going on, as many as the picture has of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops import topk_select
from ..validate import real
from .base import Policy
from .registration import register
from .types import EncoderSpec, Selection, VisualTokens


@register("erase")
@dataclass
class Erase(Policy):
    """Tokens by the entropy of their pixels (the first stage of ERASE, arXiv:2605.09982).

    1. The entropy of a token is that of the grey levels of its pixels, over the largest possible one: 32 levels between
       the darkest and the lightest pixel of the call.
    2. The tokens with the largest entropy stay; ties go to the lowest index.
    3. Without a budget, the median entropy of a picture says how many: the share `least` where it is 0, `most` where
       it is `busy` or above, and in proportion between. So pictures full of text keep more.

    The idea is the paper's, and the numbers are not: its thresholds were searched for on data, it blurs the picture
    before, and counts 256 levels and edges. Its second stage drops tokens in the decoder by attention of the text, at
    layers 2 and 19 of 28; here that is another policy's: `apply_pruning(model, ["erase", "sparsevlm"])`.

    Where it is not known which pixels are whose (pictures in several tiles), the cosine distance of a token to the
    picture's mean token, halved, takes the place of the entropy.

    Args:
        least: share of tokens that stays of a picture of one colour, in (0, 1].
        most: share that stays of a busy picture, in (0, 1], at least `least`.
        busy: median entropy from which a picture is busy, in (0, 1].
    """

    least: float = 0.1
    most: float = 0.8
    busy: float = 0.6
    needs: ClassVar[frozenset[str]] = frozenset()
    adaptive: ClassVar[bool] = True
    paper: ClassVar[str] = "ERASE, arXiv:2605.09982"
    keeps: ClassVar[str] = "patches with many grey levels, more of them in busy pictures"
    deviates: ClassVar[str] = (
        "its idea, not its thresholds, which were searched for on data; entropy without blur and edges; the cuts in "
        "the decoder are another policy's"
    )

    def __post_init__(self) -> None:
        real(self, "least", "most", "busy", above=0, most=1, what="a share")
        if self.least > self.most:
            raise ValueError(f"least={self.least!r} must be at most most={self.most!r}")

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(rows=None, entropy=True)

    def select(self, tokens: VisualTokens, n_keep: int | None) -> Selection:
        entropy = _entropy(tokens)
        if n_keep is None:
            share = self.least + (self.most - self.least) * min(1.0, float(entropy.median()) / self.busy)
            n_keep = max(1, round(share * len(tokens)))
        return Selection(topk_select(entropy, n_keep))


def _entropy(tokens: VisualTokens) -> Tensor:
    """(N,) float32, in [0, 1]."""
    if tokens.patch_entropy is not None:
        return tokens.patch_entropy
    features = tokens.features.float()
    return (1 - torch.cosine_similarity(features, features.mean(0, keepdim=True))) / 2
