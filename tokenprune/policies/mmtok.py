"""MMTok: tokens that cover both the question's words and the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..device import to_device
from ..ops import TokenCover, token_coverage_select
from ..validate import boolean, real, wholes
from .base import Policy
from .merging import mergeable
from .presets import LLAVA_7B, Preset, presets_of
from .registration import register
from .relevance import question_similarity
from .spacing import fill_evenly
from .types import EncoderSpec, Selection, VisualTokens


@register("mmtok")
@dataclass
class MMTok(Policy):
    """Multimodal coverage maximisation (MMTok, arXiv:2508.18264, section 3).

    1. Cosine similarities of each word of the question with all tokens, and of each token with all tokens, are turned
       into distributions over tokens by a softmax. Words are compared with projected tokens. Tokens are compared
       before the projector where they match the projected ones one-to-one, and by the mean of their patches before
       the merger on Qwen's models.
    2. A set of tokens covers a word, or a token, by the largest of its values in that distribution.
    3. Tokens are added greedily to maximise the mean coverage of words plus `alpha` times the mean coverage of tokens.

    The defaults are those of the paper's code for LLaVA; for Qwen2.5-VL it has `text_temperature=0.01`. As in that
    code, patches that pad a picture to a square are left out. They are told by the mean colour of the processor, and
    stay only if the budget exceeds the rest. The paper's code covers keywords of the question, which a language model
    may have rewritten first. A policy has no tokenizer, so here all text tokens behind the picture count, chat template
    included, but those of `ignored`. Without a question only the image is covered.

    Args:
        text_temperature: temperature of the softmax of words over tokens, > 0.
        vision_temperature: temperature of the softmax of tokens over tokens, > 0.
        alpha: weight of covering the image, >= 0.
        ignored: token ids that are no keywords, for example of stop words and of the chat template:
            `tuple(tokenizer("what is the of in", add_special_tokens=False).input_ids)`. If a question has no others,
            all count. It has no effect where embeddings are fed in place of ids.
        per_tile: whether the budget of a picture in tiles is split over them, and each is selected from alone, as the
            paper's code does. Tiles are known on LLaVA-NeXT.
    """

    text_temperature: float = 0.02
    vision_temperature: float = 0.2
    alpha: float = 0.5
    ignored: tuple[int, ...] = ()
    per_tile: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str] = "MMTok, ICLR 2026, arXiv:2508.18264"
    keeps: ClassVar[str] = "tokens that cover the question's words and the picture"
    deviates: ClassVar[str] = (
        "all words of the question but `ignored` ones (the release: keywords, of a question that may be rewritten); "
        "one budget for all tiles of a picture (`per_tile`)"
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        **presets_of("paper", 192, 128, 64, table="main table", model=LLAVA_7B),
        **{
            f"qwen-{percent}": Preset(
                percent / 100,
                {"text_temperature": 0.01},
                table="table of Qwen2.5-VL",
                model="Qwen2.5-VL-7B, 28 layers",
            )
            for percent in (20, 10, 5)
        },
    }

    def __post_init__(self) -> None:
        real(self, "text_temperature", "vision_temperature", above=0)
        real(self, "alpha", least=0)
        wholes(self, "ignored", what="token ids")
        boolean(self, "per_tile")

    @property
    def by_tile(self) -> bool:
        return self.per_tile

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(rows=None, features=True, patches=True, padding=True)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        features, words = mergeable(tokens)[0], question_similarity(tokens)
        if tokens.encoder_features is None and tokens.encoder_patches is not None:
            features = tokens.encoder_patches
        picture = None if tokens.is_padding is None else (~tokens.is_padding).nonzero()[:, 0]
        if picture is None or len(picture) == len(tokens):
            return Selection(self._picks(features, words, tokens.question_ids, n_keep).sort().values)
        if n_keep >= len(picture):
            return Selection(fill_evenly(picture, len(tokens), n_keep))
        at = to_device(picture, features.device)
        return Selection(at[self._picks(features[at], words[:, at], tokens.question_ids, n_keep).sort().values])

    def _picks(self, features: Tensor, words: Tensor, ids: Tensor | None, n_keep: int) -> Tensor:
        """(n_keep,) int64 indices of (N, D) features, in the order picked.

        Args:
            features: what the tokens are compared by.
            words: (Q, N) similarities of the question's words with them.
            ids: (Q,) token ids of the words, if they are known.
            n_keep: how many to pick.
        """
        n = len(features)
        weight = torch.full((1, n), self.alpha / n, device=features.device)
        meant = None
        if len(words):
            meant = (words / self.text_temperature).softmax(-1)[None] * self._shares(words, ids)[:, None]
        cover = TokenCover(temperature=self.vision_temperature)
        return token_coverage_select(features[None], n_keep, weight=weight, cover=cover, others=meant)[0]

    def _shares(self, words: Tensor, ids: Tensor | None) -> Tensor:
        """(Q,) float32, what each word counts: alike, or 0 if it is ignored; they sum to 1."""
        if ids is None or not self.ignored:
            return torch.full((len(words),), 1 / len(words), device=words.device)
        ignored = to_device(torch.tensor(self.ignored), ids.device)
        counts = ~torch.isin(ids, ignored)
        counts = (counts | ~counts.any()).float().to(words.device)
        return counts / counts.sum()
