"""CoverPruner: tokens that cover what is particular in the picture, attended parts first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops import token_coverage_select
from ..validate import choice
from .base import Policy
from .presets import LLAVA_7B, Preset
from .registration import register
from .stages import Stage
from .types import DecoderView, EncoderSpec, Selection, VisualTokens


@register("coverpruner")
@dataclass
class CoverPruner(Policy):
    """Weighted coverage of centred tokens (CoverPruner, arXiv:2609.03158).

    1. Projected tokens are centred: their mean over the visual input is subtracted.
    2. A set of tokens covers a token by the largest cosine similarity of the centred ones, at least 0.
    3. Tokens are added greedily, each time the one that adds most to the coverage of all tokens, each weighted by the
       attention that it receives.

    The paper weights by attention in the first decoder layer, so that this layer runs with all tokens
    (`weights="decoder"`). By default the weights are attention in the vision encoder, and tokens leave before the
    decoder.

    Args:
        weights: `"encoder"`, attention of the CLS token in the layer that feeds the projector (of all tokens without
            one); `"decoder"`, attention of the text after the first visual token in the first decoder layer, or in the
            last one in which the model needs all tokens; `"equal"`, none.
    """

    weights: str = "encoder"
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    paper: ClassVar[str] = "CoverPruner, arXiv:2609.03158"
    keeps: ClassVar[str] = "tokens that cover what is particular in the picture, attended parts first"
    deviates: ClassVar[str] = (
        "weights from the vision encoder (the paper: the first decoder layer; `weights`); read second hand"
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        f"paper-{n}": Preset(n, {"weights": "decoder"}, table="LLaVA-1.5, by the paper", model=LLAVA_7B, mean=mean)
        for n, mean in ((128, 142.0), (64, 80.0), (32, 49.0))
    }

    def __post_init__(self) -> None:
        choice(self, "weights", ("encoder", "decoder", "equal"))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The decoder stage where its attention weights the tokens."""
        return (Stage.DECODER,) if self.weights == "decoder" else super().stages

    def encoder_spec(self) -> EncoderSpec | None:
        return EncoderSpec(layer="feature", rows="cls") if self.weights == "encoder" else None

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        return Selection(_cover(tokens.features, n_keep, tokens.encoder_attention))

    def decoder_layers(self, n_layers: int, lowest: int) -> list[int]:
        return [lowest]

    def decoder_select(self, view: DecoderView) -> list[Tensor] | None:
        if all(len(columns) == k for columns, k in zip(view.visual, view.n_keep, strict=True)):
            return None
        weight = view.received(view.text if len(view.text) else torch.tensor([view.last]))
        embeds, masks = view.embeds(), []
        for columns, k in zip(view.visual, view.n_keep, strict=True):
            mask = torch.zeros(len(columns), dtype=torch.bool, device=embeds.device)
            if k:
                mask[_cover(embeds[columns], k, weight[columns])] = True
            masks.append(mask)
        return masks


def _cover(features: Tensor, k: int, weight: Tensor | None) -> Tensor:
    """(k,) int64 indices, ascending, of (N, D) tokens."""
    features = features.float()
    centred = features - features.mean(0)
    picks = token_coverage_select(centred[None], k, weight=None if weight is None else weight[None].float())[0]
    return picks.sort().values
