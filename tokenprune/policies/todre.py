"""ToDRE: diverse tokens before the decoder, and none of them deep inside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..device import to_device
from ..ops import max_min_select, max_sum_select
from ..validate import boolean, choice, real, reals, seed
from .base import Policy, register
from .greedy import greedy_selections
from .types import DecoderView, EncoderSpec, Selection, VisualTokens


@register("todre")
@dataclass
class ToDRE(Policy):
    """Two-stage token diversity and task-aware removal (arXiv:2505.18757).

    First stage (section 3.2, Algorithm 1): from a pivot, the token with most CLS attention in the
    encoder's last layer (of an image with crops: in its thumbnail), tokens are added greedily.
    `"max-sum"` is version 2 of the paper: smallest summed cosine similarity to those picked;
    `"k-center"` is version 1: farthest from the nearest of them. A video is selected from as a whole.

    Second stage (section 3.3): at the checked decoder layers during prefill, if text looks little at pictures
    and pictures little at text (both shares of attention, averaged over heads, under `tau`), all
    visual tokens of that row leave for the layers above. In a causal decoder pictures cannot see text
    that follows them, so with the pictures first, the second share is 0.

    The paper leaves open how heads are reduced (here: the mean), how 7/8 of the layers rounds (down),
    and the output's order (the original one).

    Args:
        objective: `"max-sum"` or `"k-center"`.
        pivot_without_cls: on encoders without CLS: `"random"` (the paper's advice) or `"farthest"`
            from the mean of all tokens.
        seed: of the random pivot.
        removal: whether there is a second stage.
        depths: which layers are checked, as shares of all layers. The paper's own ablation advises
            against more than 7/8: from one half on, 12 points were lost.
        tau: its threshold.
    """

    objective: Literal["max-sum", "k-center"] = "max-sum"
    pivot_without_cls: Literal["random", "farthest"] = "random"
    seed: int = 0
    removal: bool = True
    depths: tuple[float, ...] = (7 / 8,)
    tau: float = 0.10
    stage: ClassVar[Literal["vision", "decoder", "vision, decoder"]] = "vision, decoder"
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    per_frame: ClassVar[bool] = False
    paper: ClassVar[str] = "ToDRE, arXiv:2505.18757"
    keeps: ClassVar[str] = "diverse tokens from a CLS pivot; deep in the decoder none, where text ignores them"
    deviates: ClassVar[str] = "mean over heads; 7/8 of the layers rounded down; original order"

    def __post_init__(self) -> None:
        choice(self, "objective", ("max-sum", "k-center"))
        choice(self, "pivot_without_cls", ("random", "farthest"))
        seed(self, "seed")
        boolean(self, "removal")
        reals(self, "depths", above=0, below=1, what="shares of the layers")
        real(self, "tau", least=0)
        if not self.removal:
            self.stage = "vision"  # type: ignore[misc]

    def encoder(self) -> EncoderSpec:
        return EncoderSpec(layer="last", rows="cls", without_cls=None)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        return self.select_many([tokens], [n_keep])[0]

    def select_many(self, tokens: Sequence[VisualTokens], n_keep: Sequence[int]) -> list[Selection]:
        op = max_sum_select if self.objective == "max-sum" else max_min_select
        return greedy_selections(op, tokens, n_keep, [self._pivot(each) for each in tokens])

    def _pivot(self, tokens: VisualTokens) -> Tensor:
        if tokens.encoder_attention is not None:
            t, h, w = tokens.grids[0] if tokens.grids is not None and len(tokens.grids) > 1 else (1, 1, len(tokens))
            return tokens.encoder_attention[: t * h * w].argmax()
        if self.pivot_without_cls == "random":
            generator = torch.Generator().manual_seed(self.seed)
            return to_device(torch.randint(len(tokens), (), generator=generator), tokens.features.device)
        features = tokens.features.float()
        return (features - features.mean(0)).norm(dim=-1).argmax()

    def deep_layers(self, n_layers: int, lowest: int) -> list[int]:
        return sorted({max(lowest, int(depth * n_layers)) for depth in self.depths})

    def deep_select(self, view: DecoderView) -> list[Tensor] | None:
        visual = torch.cat(view.visual)
        if len(view.text) == 0 or len(visual) == 0:
            return None
        text_to_visual = view.received(view.text)[visual].sum()
        visual_to_text = view.received(visual)[view.text].sum()
        if float(torch.maximum(text_to_visual, visual_to_text)) >= self.tau:
            return None
        return [torch.zeros(len(places), dtype=torch.bool) for places in view.visual]
