"""PriorTR: the visual tokens that gain attention once the question has been read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..device import to_host
from ..validate import choice, whole
from .base import Policy
from .presets import LLAVA_7B, Preset
from .registration import register
from .types import DecoderView

_LEAST = 1e-10  # added to shares before a logarithm, as in the paper's code


@register("priortr")
@dataclass
class PriorTR(Policy):
    """One drop by what the question adds to attention (PriorTR, arXiv:2606.24156).

    1. Layers 0 to `layer` - 1 get all visual tokens.
    2. Q is the attention in layer `layer` - 1 that the first text token after the visual input pays to its tokens.
       It cannot see the question, which stands behind it.
    3. P is the same of the tokens that `query` names. P and Q are means over heads, and each is scaled to sum to 1
       over the tokens of the visual input.
    4. The tokens with the largest P log(P / Q) stay; ties go to the lowest index.

    A question in front of the picture is seen by both, and adds nothing. Where no text stands between the visual input
    and the last token, P alone ranks.

    Args:
        layer: index of the first decoder layer with fewer tokens, >= 1. The release's setting is 3, as in the presets.
        query: `"last"`, the prompt's last token; or `"question"`, all text after the visual input, averaged. The
            release takes the question on LLaVA-1.5 and the last token on LLaVA-NeXT.
    """

    layer: int = 2
    query: str = "last"
    stage: ClassVar[Literal["decoder"]] = "decoder"
    paper: ClassVar[str] = "PriorTR, ECCV 2026, arXiv:2606.24156"
    keeps: ClassVar[str] = "what gains attention once the question has been read"
    deviates: ClassVar[str] = "Q is of the first text token after the picture, on LLaVA the release's line break"
    presets: ClassVar[Mapping[str, Preset]] = {
        f"paper-{n}": Preset(
            n, {"layer": 3, "query": "question"}, table="the release's setting for LLaVA-1.5", model=LLAVA_7B, mean=mean
        )
        for n, mean in ((192, 228.0), (128, 170.0), (64, 112.0))
    }

    def __post_init__(self) -> None:
        whole(self, "layer", least=1)
        choice(self, "query", ("last", "question"))

    def decoder_layers(self, n_layers: int, lowest: int) -> list[int]:
        return [self.layer]

    def decoder_select(self, view: DecoderView) -> list[Tensor] | None:
        if all(len(columns) == k for columns, k in zip(view.visual, view.n_keep, strict=True)):
            return None
        present = [columns for columns in view.visual if len(columns)]
        text, ends = to_host([view.text, torch.stack([columns[-1] for columns in present])])
        scores = torch.zeros_like(view.received(torch.tensor([view.last])))
        for columns, end in zip(present, ends, strict=True):
            scores[columns] = self._gain(view, columns, text[text > end])
        return view.best(scores, view.n_keep)

    def _gain(self, view: DecoderView, columns: Tensor, after: Tensor) -> Tensor:
        """(N,) scores of a visual input's tokens.

        Args:
            view: the row.
            columns: (N,) int64, of the tokens.
            after: (T,) int64 on the host, columns of the text after them, ascending.
        """
        last = torch.tensor([view.last])
        p = _shares(view.received(after if self.query == "question" and len(after) else last)[columns])
        if len(after) == 0 or int(after[0]) >= view.last:
            return p
        q = _shares(view.received(after[:1])[columns])
        return p * ((p + _LEAST) / (q + _LEAST)).log()


def _shares(attention: Tensor) -> Tensor:
    """(N,) attention, scaled to sum to 1."""
    return attention / (attention.sum() + _LEAST)
