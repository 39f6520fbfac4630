"""Recoverable Compression: visual filter, recovery by the question, merging of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import topk_select
from ..validate import boolean, real, whole
from .base import Policy, register
from .merging import mergeable, with_merged
from .spacing import others
from .types import EncoderSpec, Selection, VisualTokens


def outlier_share(values: Tensor, neighbours: int) -> float:
    """Share of 1-D values that the local outlier factor calls outliers (Breunig et al. 2000).

    The factor compares a value's local reachability density with its neighbours'; above 1.5 is out, as
    in scikit-learn with `contamination="auto"`.
    """
    n = len(values)
    k = min(neighbours, n - 1)
    if k < 1:
        return 0.0
    values = values.double()
    distance = (values[:, None] - values[None]).abs().fill_diagonal_(torch.inf)
    near, who = distance.topk(k, largest=False)
    reach = torch.maximum(near, near[:, -1][who])
    density = 1 / (reach.mean(1) + 1e-10)
    factor = density[who].mean(1) / density
    return float((factor > 1.5).double().mean())


@register("recoverable")
@dataclass
class Recoverable(Policy):
    """Token compression that the question can undo (arXiv:2409.01179).

    1. Visual filter: tokens with the largest CLS attention of the encoder's last layer (one softmax
       over full-width queries and keys). 2. Recovery: of the others, those most like the question.
       3. Of the rest, those with most CLS attention become centres, to which each adds its 32 most
       similar tokens (by keys, and by likeness to the question), weighted by attention; one more token
       sums up what is left. Without a budget, the three counts are the shares of local outliers among
       the scores; with one, they are a half, a quarter and what remains.

    The released code differs from its description; we follow the description: the question is the text
    of the prompt (the release scores its system prompt), the third step counts the remaining tokens
    (the release: the feature width) and uses their own keys. The paper compares with CLIP's text
    encoder, which LLaVA and Qwen-VL checkpoints do not carry: here the mean input embedding of the
    prompt's text stands in, compared with projected tokens. That is weak evidence on a model whose
    projector was not trained towards its word embeddings. Encoders without CLS use the attention that
    tokens receive from all. Merged tokens take the places of their centres; the last one, the place of
    the most attended token that is left.

    Args:
        neighbours: of the outlier factor in steps 1 and 2.
        merge_neighbours: of the outlier factor in step 3.
        cluster: tokens that each centre absorbs.
        text_weight: of likeness to the question among likeness of keys; the release's 50 / sqrt(768).
        normalise: whether merging weights sum to one (the release's do not, and hardly merge).
    """

    neighbours: int = 20
    merge_neighbours: int = 10
    cluster: int = 32
    text_weight: float = 1.804
    normalise: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention", "text"})
    adaptive: ClassVar[bool] = True
    paper: ClassVar[str] = "Recoverable Compression, AAAI 2025, arXiv:2409.01179"
    keeps: ClassVar[str] = "what CLS attends to, what the question asks for, and the rest merged"
    deviates: ClassVar[str] = "follows the description where the release differs; word embeddings for CLIP"

    def __post_init__(self) -> None:
        whole(self, "neighbours", "merge_neighbours", least=1)
        whole(self, "cluster")
        real(self, "text_weight", least=0)
        boolean(self, "normalise")

    def encoder(self) -> EncoderSpec:
        return EncoderSpec(layer="last", rows="cls", joined_heads=True, keys="joined", features=True)

    def select(self, tokens: VisualTokens, n_keep: int | None) -> Selection:
        attention, text, n = tokens.encoder_attention, self.likeness(tokens), len(tokens)
        assert attention is not None
        visual, recovered, centres = self._counts(n, n_keep)

        if visual is None:
            visual = max(1, int(n * outlier_share(attention, self.neighbours)))
        taken = topk_select(attention, visual)
        likeness = text.index_fill(0, taken, -torch.inf)
        if recovered is None:
            recovered = int((n - visual) * outlier_share(likeness.clamp(min=text.min()), self.neighbours))
        taken = torch.cat([taken, topk_select(likeness, recovered)])

        rest = others(taken, n)
        if centres is None:
            centres = int(len(rest) * outlier_share(attention[rest], self.merge_neighbours))
        if centres == 0 or centres >= len(rest):  # nothing is left to merge
            return Selection(torch.cat([taken, rest[:centres]]).sort().values)
        return self._merge(tokens, attention, text, taken, rest, centres)

    @staticmethod
    def _counts(n: int, n_keep: int | None) -> tuple[int | None, int | None, int | None]:
        """Tokens of steps 1, 2 and 3, centres only; None where outliers decide."""
        if n_keep is None:
            return None, None, None
        if n_keep < 5:  # too few to merge
            return n_keep, 0, 0
        return n_keep // 2, n_keep // 4, n_keep - n_keep // 2 - n_keep // 4 - 1

    @staticmethod
    def likeness(tokens: VisualTokens) -> Tensor:
        """Cosine of each token with the mean embedding of the prompt's text, (N,) float32."""
        if tokens.text is None or len(tokens.text) == 0:
            return torch.zeros(len(tokens), device=tokens.features.device)
        question = tokens.text.float().mean(0, keepdim=True)
        return F.cosine_similarity(tokens.features.float(), question)

    def _merge(
        self, tokens: VisualTokens, attention: Tensor, text: Tensor, taken: Tensor, rest: Tensor, centres: int
    ) -> Selection:
        features, project = mergeable(tokens)
        assert tokens.encoder_keys is not None
        weight, keys = attention[rest].to(features.dtype), F.normalize(tokens.encoder_keys[rest].float(), dim=-1)
        chosen = topk_select(attention[rest], centres)

        near = keys[chosen] @ keys.T + self.text_weight * text[rest].to(keys.dtype)
        near[torch.arange(centres, device=near.device), chosen] = -torch.inf  # others only
        members = near.topk(min(self.cluster, len(rest) - 1)).indices
        shares = weight[members]
        if self.normalise:
            shares = shares / shares.sum(1, keepdim=True)
        merged = features[rest[chosen]] + (shares[..., None] * features[rest[members]]).sum(1)

        left = others(chosen, len(rest))
        shares = weight[left] / weight[left].sum() if self.normalise else weight[left]
        extra = (shares[:, None] * features[rest[left]]).sum(0, keepdim=True)
        place = rest[left][weight[left].argmax(0, keepdim=True)]

        places = torch.cat([rest[chosen], place])
        return with_merged(tokens, taken, places, project(torch.cat([merged, extra])))
