"""SIEVE: tokens that the text attends to and that say what the text does not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..validate import real, whole
from .base import Policy
from .presets import LLAVA_7B, Preset
from .registration import register
from .types import DecoderView


@register("sieve")
@dataclass
class Sieve(Policy):
    """Residuals against the question's span, times attention, chosen greedily (SIEVE, arXiv:2608.10489).

    T are the hidden states of the text after the first visual token and V those of a visual input's tokens, after the
    model's final norm, each centred by its own mean.

    1. Residual: r = v - v T' (T T' + lambda I)^-1 T, what of a token is not in the span of the text. lambda is
       sigma_k squared, with k the least number of singular values of T that hold the share `energy` of the sum of
       their squares.
    2. Attention: of the text to each token in the layer below, averaged over the text and over the `heads` heads that
       pay most to all visual tokens.
    3. The score of a token is attention squared times (|r| / |v|) squared.
    4. Greedily, the token with the largest score stays, and the scores of all others are multiplied by
       1 - cos(r, r of that token) squared. Ties go to the lowest index.

    Without text after the visual tokens, residuals are the tokens themselves, and the last token attends.

    Args:
        layer: index of the first decoder layer with fewer tokens, >= 1. The paper's is not known to us.
        heads: heads whose attention counts, >= 1; all of them where a model has fewer.
        energy: share of the text's energy up to the singular value that regularises, in (0, 1].
    """

    layer: int = 2
    heads: int = 12
    energy: float = 0.75
    stage: ClassVar[Literal["decoder"]] = "decoder"
    paper: ClassVar[str] = "SIEVE, arXiv:2608.10489"
    keeps: ClassVar[str] = "attended tokens that say what neither the text nor other kept tokens say"
    deviates: ClassVar[str] = "the layer is our choice; hidden states after the final norm; read second hand"
    presets: ClassVar[Mapping[str, Preset]] = {
        f"paper-{n}": Preset(n, table=f"LLaVA-1.5 at {percent} %, at our layer", model=LLAVA_7B, mean=mean)
        for n, percent, mean in ((192, 33, 216.0), (128, 22, 156.0), (64, 11, 96.0))
    }

    def __post_init__(self) -> None:
        whole(self, "layer", "heads", least=1)
        real(self, "energy", above=0, most=1, what="a share of the energy")

    def decoder_layers(self, n_layers: int, lowest: int) -> list[int]:
        return [self.layer]

    def decoder_select(self, view: DecoderView) -> list[Tensor] | None:
        if all(len(columns) == k for columns, k in zip(view.visual, view.n_keep, strict=True)):
            return None
        hidden = view.hidden().float()
        attention = self.attention(view)
        text = _centred(hidden[view.text]) if len(view.text) else hidden[:0]
        masks = []
        for columns, k in zip(view.visual, view.n_keep, strict=True):
            mask = torch.zeros(len(columns), dtype=torch.bool, device=hidden.device)
            if k:
                tokens = _centred(hidden[columns])
                residual = self.residual(tokens, text)
                share = residual.norm(dim=-1) / tokens.norm(dim=-1).clamp(min=1e-12)
                mask[_greedy(residual, (attention[columns] * share).square(), k)] = True
            masks.append(mask)
        return masks

    def attention(self, view: DecoderView) -> Tensor:
        """(M,) float32, by column: of the heads that look at the picture."""
        rows = view.text if len(view.text) else torch.tensor([view.last])
        if view.received_by_head is None:  # a view that was made without it
            return view.received(rows)
        by_head = view.received_by_head(rows)
        mass = by_head[:, torch.cat(view.visual)].sum(1)
        return by_head[mass.topk(min(self.heads, len(mass))).indices].mean(0)

    def residual(self, tokens: Tensor, text: Tensor) -> Tensor:
        """(N, D): what of centred (N, D) tokens is not in the span of the centred (T, D) text."""
        if len(text) == 0:
            return tokens
        gram = text @ text.T
        energies = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)  # singular values of the text, squared
        k = (energies.cumsum(0) < self.energy * energies.sum()).sum().clamp(max=len(energies) - 1)
        weight = energies.index_select(0, k[None]) + 1e-6 * energies[:1] + 1e-12
        ridge = gram + weight * torch.eye(len(gram), device=gram.device)
        rest: Tensor = tokens - tokens @ text.T @ torch.linalg.solve(ridge, text)
        return rest


def _centred(vectors: Tensor) -> Tensor:
    return vectors - vectors.mean(0)


def _greedy(residual: Tensor, scores: Tensor, k: int) -> Tensor:
    """(k,) int64 picks among (N, D) residuals with (N,) scores."""
    unit, picks = F.normalize(residual, dim=-1), []
    for _ in range(k):
        best = scores.argmax()[None]
        picks.append(best)
        chosen = unit.index_select(0, best)[0]
        scores = scores * (1 - (unit @ chosen).square()).clamp(min=0)
        scores = scores.index_fill(0, best, -1.0)
    return torch.cat(picks)
