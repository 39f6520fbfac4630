"""VisPruner: tokens that the CLS token attends to, and tokens of the rest that are no duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ..validate import boolean, real, whole
from .base import Policy
from .duplicates import without_duplicates
from .merging import mergeable
from .presets import LLAVA_7B, Preset
from .registration import register
from .types import EncoderSpec, Selection, VisualTokens


@register("vispruner")
@dataclass
class VisPruner(Policy):
    """Important tokens by attention, diverse ones by removing duplicates (VisPruner, arXiv:2412.01818, section 3.3).

    1. Important tokens: a share of the budget is kept by CLS attention in the encoder layer that feeds the projector.
    2. Diverse tokens: the rest, sorted by falling attention, is reduced in rounds to the rest of the budget. In a
       round, tokens at even places are compared with those at odd ones (cosine similarity of features, before the
       projector where they match the projected ones one-to-one). The even ones are sorted by their largest
       similarity to an odd one, falling, and the first `step` of them are dropped. The next round takes those that
       are left in this order, and then the odd ones.

    The paper's code needs an even number of tokens in a round; here an odd last one counts as even and may be dropped.
    Encoders without a CLS token use the attention that tokens receive from all tokens.

    Args:
        important: share of the budget for important tokens, in [0, 1]; the default is that of the paper's code.
        step: tokens that are dropped in a round, >= 1.
        per_tile: whether the budget of a picture in tiles is split over them, and each is selected from alone, as the
            paper's code does. Tiles are known on LLaVA-NeXT.
    """

    important: float = 0.5
    step: int = 8
    per_tile: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    paper: ClassVar[str] = "VisPruner, ICCV 2025, arXiv:2412.01818"
    keeps: ClassVar[str] = "what CLS attends to, and of the rest what is no duplicate"
    deviates: ClassVar[str] = (
        "takes an odd number of tokens too; one budget for all tiles of a picture (`per_tile`), without the borders "
        "that the model cuts away (the release keeps them)"
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        f"paper-{n}": Preset(
            n,
            {"important": important},
            table="main table, with the release's settings",
            model=LLAVA_7B,
            mean=n,
        )
        for n, important in ((192, 0.5), (128, 0.5), (64, 0.75))
    }

    def __post_init__(self) -> None:
        real(self, "important", least=0, most=1, what="a share of the budget")
        whole(self, "step", least=1)
        boolean(self, "per_tile")

    @property
    def by_tile(self) -> bool:
        return self.per_tile

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="cls", features=True)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        assert tokens.encoder_attention is not None
        n_important = int(self.important * n_keep)
        by_attention = tokens.encoder_attention.argsort(descending=True, stable=True)
        important, rest = by_attention[:n_important], by_attention[n_important:]
        if n_keep == n_important:
            return Selection(important.sort().values)
        unit = F.normalize(mergeable(tokens)[0][rest].float(), dim=-1)
        unit = F.normalize(unit, dim=-1)  # again: similar pairs are close, and rounding of the lengths would order them
        diverse = rest[without_duplicates(unit, n_keep - n_important, self.step)]
        return Selection(torch.cat([important, diverse]).sort().values)
