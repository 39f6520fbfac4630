"""Recoverable Compression: a visual filter, recovery by the question, and merging of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import topk_select
from ..validate import boolean, real, whole
from .base import Policy
from .merging import mergeable, with_merged
from .registration import register
from .spacing import complement
from .types import EncoderSpec, Selection, VisualTokens


def outlier_share(values: Tensor, neighbours: int) -> float:
    """Share of (N,) values that the local outlier factor calls outliers (Breunig et al. 2000), in [0, 1].

    The factor compares a value's local reachability density with that of its `neighbours` nearest neighbours. Values
    with a factor above 1.5 are outliers, as in scikit-learn with `contamination="auto"`.
    """
    n = len(values)
    k = min(neighbours, n - 1)
    if k < 1:
        return 0.0
    values = values.double()
    distance = (values[:, None] - values[None]).abs().fill_diagonal_(torch.inf)
    near, nearest = distance.topk(k, largest=False)
    reach = torch.maximum(near, near[:, -1][nearest])
    density = 1 / (reach.mean(1) + 1e-10)
    factor = density[nearest].mean(1) / density
    return float((factor > 1.5).double().mean())


@register("recoverable")
@dataclass
class Recoverable(Policy):
    """Token compression with recovery by the question (Recoverable Compression, arXiv:2409.01179).

    1. Visual filter: tokens with the largest CLS attention in the encoder's last layer (one softmax over queries and
       keys of full width) stay.
    2. Recovery: of the others, those most similar to the question stay.
    3. Merging: of the rest, the tokens with the largest CLS attention become centres. To each, its `cluster` most
       similar tokens are added, by keys and by similarity to the question, weighted by attention. One more token is
       the weighted sum of what is left.

    Without a budget, the counts of the three steps are the shares of local outliers among the scores (`neighbours`,
    `merge_neighbours`). With one they are a half, a quarter, and what remains.

    The released code differs from its description, and the description is followed here: the question is the text of
    the prompt (the code scores its system prompt), step 3 counts the remaining tokens (the code: the feature width)
    and uses their own keys. The paper compares with CLIP's text encoder, which LLaVA and Qwen-VL checkpoints do not
    contain. Here the mean input embedding of the prompt's text is compared with projected tokens, which is weak
    evidence on a model whose projector was not trained towards its word embeddings. Encoders without a CLS token use
    the attention that tokens receive from all tokens. Merged tokens take the positions of their centres, and the last
    one that of the most attended token of what is left.

    Args:
        neighbours: of the local outlier factor in steps 1 and 2, >= 1.
        merge_neighbours: of the local outlier factor in step 3, >= 1.
        cluster: how many tokens are added to each centre, >= 0.
        text_weight: weight of the similarity to the question beside that of keys, >= 0; 50 / sqrt(768) in the code.
        normalise: whether merging weights sum to one. Those of the paper's code do not, and hardly change a centre.
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

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(layer="last", rows="cls", joined_heads=True, keys="joined", features=True)

    def select(self, tokens: VisualTokens, n_keep: int | None) -> Selection:
        attention, by_text, n = tokens.encoder_attention, self.text_similarity(tokens), len(tokens)
        assert attention is not None
        visual, recovered, centres = self._counts(n, n_keep)

        if visual is None:
            visual = max(1, int(n * outlier_share(attention, self.neighbours)))
        kept = topk_select(attention, visual)
        of_others = by_text.index_fill(0, kept, -torch.inf)
        if recovered is None:
            recovered = int((n - visual) * outlier_share(of_others.clamp(min=by_text.min()), self.neighbours))
        kept = torch.cat([kept, topk_select(of_others, recovered)])

        rest = complement(kept, n)
        if centres is None:
            centres = int(len(rest) * outlier_share(attention[rest], self.merge_neighbours))
        if centres == 0 or centres >= len(rest):  # nothing is left to merge
            return Selection(torch.cat([kept, rest[:centres]]).sort().values)
        return self._merge(tokens, by_text, kept, rest, centres)

    @staticmethod
    def _counts(n: int, n_keep: int | None) -> tuple[int | None, int | None, int | None]:
        """Tokens of steps 1 and 2, and centres of step 3; None where outliers decide."""
        if n_keep is None:
            return None, None, None
        if n_keep < 5:  # too few to merge
            return n_keep, 0, 0
        return n_keep // 2, n_keep // 4, n_keep - n_keep // 2 - n_keep // 4 - 1

    @staticmethod
    def text_similarity(tokens: VisualTokens) -> Tensor:
        """Cosine similarity of each token with the mean embedding of the prompt's text, (N,) float32; 0 without one."""
        if tokens.text is None or len(tokens.text) == 0:
            return torch.zeros(len(tokens), device=tokens.features.device)
        question = tokens.text.float().mean(0, keepdim=True)
        return F.cosine_similarity(tokens.features.float(), question)

    def _merge(self, tokens: VisualTokens, by_text: Tensor, kept: Tensor, rest: Tensor, centres: int) -> Selection:
        """Step 3: the kept tokens, `centres` merged ones, and the one that sums up what is left of `rest`."""
        features, project = mergeable(tokens)
        attention = tokens.encoder_attention
        assert attention is not None and tokens.encoder_keys is not None
        weight, keys = attention[rest].to(features.dtype), F.normalize(tokens.encoder_keys[rest].float(), dim=-1)
        chosen = topk_select(attention[rest], centres)

        similarity = keys[chosen] @ keys.T + self.text_weight * by_text[rest].to(keys.dtype)
        similarity[torch.arange(centres, device=similarity.device), chosen] = -torch.inf  # not the token itself
        members = similarity.topk(min(self.cluster, len(rest) - 1)).indices
        shares = weight[members]
        if self.normalise:
            shares = shares / shares.sum(1, keepdim=True)
        merged = features[rest[chosen]] + (shares[..., None] * features[rest[members]]).sum(1)

        others = complement(chosen, len(rest))
        shares = weight[others] / weight[others].sum() if self.normalise else weight[others]
        extra = (shares[:, None] * features[rest[others]]).sum(0, keepdim=True)
        target = rest[others][weight[others].argmax(0, keepdim=True)]

        targets = torch.cat([rest[chosen], target])
        return with_merged(tokens, kept, targets, project(torch.cat([merged, extra])))
