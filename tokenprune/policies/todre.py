"""ToDRE: diverse tokens before the decoder, and none of them deep inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..device import to_device
from ..ops import max_min_select, max_sum_select
from ..validate import boolean, choice, real, reals, seed
from .base import BatchedPolicy
from .greedy import greedy_selections
from .presets import Preset
from .registration import register
from .stages import Stage
from .types import DecoderView, EncoderSpec, Selection, VisualTokens


@register("todre")
@dataclass
class ToDRE(BatchedPolicy):
    """Token diversity, then task-aware removal of all visual tokens (ToDRE, arXiv:2505.18757).

    Before the language model (section 3.2, Algorithm 1):

    1. The pivot is the token with most CLS attention in the encoder's last layer; of an image with crops, in its
       thumbnail.
    2. From the pivot on, tokens are added greedily: with `"max-sum"` (version 2 of the paper) the one with the
       smallest summed cosine similarity to those picked, with `"k-center"` (version 1) the one farthest from the
       nearest of them. A video is selected from as a whole.

    In the decoder during prefill (section 3.3), unless `removal` is False:

    3. At each checked layer, the attention of text tokens to visual tokens and of visual tokens to text tokens in the
       layer below is computed, as shares of all their attention, averaged over heads. If both are below `tau`, all
       visual tokens of that row are dropped. In a causal decoder visual tokens do not see text that follows them, so
       the second share is 0 if the images come first.

    The paper does not say how heads are reduced (here: the mean), how 7/8 of the layers is rounded (here: down), and
    in which order tokens are returned (here: the original one).

    Args:
        objective: `"max-sum"` or `"k-center"`.
        pivot_without_cls: the pivot on encoders without a CLS token: `"random"` (the paper's advice) or `"farthest"`
            from the mean of all tokens.
        seed: of the random pivot, in [0, 2**64).
        removal: whether tokens are removed in the decoder.
        depths: which layers are checked, as shares of all layers, each in (0, 1). The paper's own ablation advises
            against less than 7/8: with one half, 12 points were lost.
        tau: threshold of the attention shares, >= 0.
    """

    objective: Literal["max-sum", "k-center"] = "max-sum"
    pivot_without_cls: Literal["random", "farthest"] = "random"
    seed: int = 0
    removal: bool = True
    depths: tuple[float, ...] = (7 / 8,)
    tau: float = 0.10
    stage: ClassVar[Literal["vision, decoder"]] = "vision, decoder"
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    per_frame: ClassVar[bool] = False
    paper: ClassVar[str] = "ToDRE, arXiv:2505.18757"
    keeps: ClassVar[str] = "diverse tokens from a CLS pivot; deep in the decoder none, where text ignores them"
    deviates: ClassVar[str] = "mean over heads; 7/8 of the layers rounded down; original order"
    presets: ClassVar[Mapping[str, Preset]] = {
        f"paper-{percent}": Preset(
            percent / 100,
            table="main table of version 2; the mean is an eighth lower where tokens leave at layer 28",
            model="LLaVA-NeXT-7B, 32 layers, 2880 tokens",
            mean=mean,
        )
        for percent, mean in ((25, 720), (10, 288))
    }

    def __post_init__(self) -> None:
        choice(self, "objective", ("max-sum", "k-center"))
        choice(self, "pivot_without_cls", ("random", "farthest"))
        seed(self, "seed")
        boolean(self, "removal")
        reals(self, "depths", above=0, below=1, what="shares of the layers")
        real(self, "tau", least=0)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Only the vision stage without `removal`."""
        return super().stages if self.removal else (Stage.VISION,)

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(layer="last", rows="cls", without_cls=None)

    def select_many(self, tokens: Sequence[VisualTokens], n_keep: Sequence[int]) -> list[Selection]:
        op = max_sum_select if self.objective == "max-sum" else max_min_select
        return greedy_selections(op, tokens, n_keep, [self._pivot(each) for each in tokens])

    def _pivot(self, tokens: VisualTokens) -> Tensor:
        """() int64 index of the first pick."""
        if tokens.encoder_attention is not None:
            t, h, w = tokens.grids[0] if tokens.grids is not None and len(tokens.grids) > 1 else (1, 1, len(tokens))
            return tokens.encoder_attention[: t * h * w].argmax()
        if self.pivot_without_cls == "random":
            generator = torch.Generator().manual_seed(self.seed)
            return to_device(torch.randint(len(tokens), (), generator=generator), tokens.features.device)
        features = tokens.features.float()
        from_mean: Tensor = (features - features.mean(0)).norm(dim=-1)
        return from_mean.argmax()

    def decoder_layers(self, n_layers: int, lowest: int) -> list[int]:
        return sorted({max(lowest, int(depth * n_layers)) for depth in self.depths})

    def decoder_counts(self, n: int, n_keep: float, n_layers: int, lowest: int) -> Sequence[float]:
        """All: whether tokens are dropped in the decoder depends on what the text attends to."""
        return [n] * len(self.decoder_layers(n_layers, lowest))

    def decoder_select(self, view: DecoderView) -> list[Tensor] | None:
        visual = torch.cat(view.visual)
        if len(view.text) == 0 or len(visual) == 0:
            return None
        text_to_visual = view.received(view.text)[visual].sum()
        visual_to_text = view.received(visual)[view.text].sum()
        if float(torch.maximum(text_to_visual, visual_to_text)) >= self.tau:
            return None
        return [torch.zeros(len(columns), dtype=torch.bool) for columns in view.visual]
