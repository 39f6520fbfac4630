"""SparseVLM: which words rate the visual tokens."""

from dataclasses import dataclass, replace

import torch

from tokenprune import Schedule, pruning
from tokenprune.policies import SparseVLM

from ..families import get_model, ragged_batch
from ..oracles import generate
from .inputs import decoder_view, kept_places


def test_sparsevlm_listens_to_telling_words():
    """Visual tokens lean to word 2; word 3 would have kept token 1."""
    embeds = torch.tensor([[4.0, 0], [4, 0], [2, 0], [0, 1]])
    attention = torch.tensor([[0.0] * 4, [0.0] * 4, [0.9, 0.1, 0, 0], [0.1, 0.9, 0, 0]])
    one = decoder_view([[0, 1]], [1], attention, text=(2, 3), embeds=embeds)
    assert SparseVLM.raters(one).tolist() == [2]
    assert kept_places(SparseVLM(Schedule((0.5,))).decoder_select(one)) == [[0]]
    assert SparseVLM.raters(decoder_view([[0, 1]], [1], attention)).tolist() == [3]


def test_sparsevlm_cuts_where_the_release_does():
    assert SparseVLM().decoder_layers(32, 1) == [3, 7, 16]


def test_sparsevlm_chooses_raters_once():
    """Token 0 made word 3 a rater and leaves first. Token 1, alone, leans to word 4, whose attention says otherwise."""
    embeds = torch.tensor([[9.0, 0], [0, 4], [0, 4], [4, 0], [0, 4]])
    attention = torch.tensor([[0.0] * 5] * 3 + [[0.1, 0.2, 0.7, 0, 0], [0.1, 0.7, 0.2, 0, 0]])
    policy = SparseVLM(Schedule((0.5, 0.75), (2, 1)))
    first = decoder_view([[0, 1, 2]], [1], attention, text=(3, 4), embeds=embeds)
    alone = replace(first, visual=[torch.tensor([1, 2])], layer=3)
    alone_raters = SparseVLM.raters(alone).tolist()
    assert alone_raters == [4] and kept_places(policy.decoder_select(alone)) == [[0]]
    for memory in ({}, None):
        policy = SparseVLM(Schedule((0.5, 0.75), (2, 1)))
        weighted = embeds.clone()
        weighted[1:3] = torch.tensor([0.0, 0.1])  # all three together lean to word 3
        first = replace(first, embeds=lambda weighted=weighted: weighted, memory=memory)
        assert SparseVLM.raters(first).tolist() == [3]
        assert kept_places(policy.decoder_select(first)) == [[1, 2]]
        second = replace(alone, memory=memory)
        assert kept_places(policy.decoder_select(second)) == [[1]]


@dataclass
class Noting(SparseVLM):
    """SparseVLM that notes the raters of each row and cut."""

    def decoder_select(self, view):
        answer = super().decoder_select(view)
        self.noted.append((view.layer, view.memory["raters"], len(view.text)))
        return answer


def test_sparsevlm_rates_with_the_same_words_at_every_cut_of_a_model():
    policy = Noting(Schedule((0.25, 0.5, 0.75)))
    policy.noted = []
    model, batch = get_model("llava"), ragged_batch("llava")
    with pruning(model, policy, 0.25, budget="final"):
        generate(model, batch.inputs, steps=2)
        generate(model, batch.inputs, steps=1)
    cuts = sorted({layer for layer, _, _ in policy.noted})
    rows = len(policy.noted) // len(cuts) // 2
    assert len(cuts) > 1 and rows > 1
    by_cut = [policy.noted[i : i + rows] for i in range(0, len(policy.noted), rows)]
    for first, later in ((0, 1), (len(cuts), len(cuts) + 1)):
        for (_, raters, n), (_, again, _) in zip(by_cut[first], by_cut[later], strict=True):
            assert again is raters and len(raters) == n and bool(raters.any())
    assert by_cut[0][0][1] is not by_cut[len(cuts)][0][1]  # another prefill
