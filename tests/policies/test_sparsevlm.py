"""SparseVLM: which words rate the visual tokens."""

import torch

from tokenprune import Schedule
from tokenprune.policies import SparseVLM

from .inputs import decoder_view, kept_places


def test_sparsevlm_listens_to_telling_words():
    """Visual tokens lean to word 2; word 3 would have kept token 1."""
    embeds = torch.tensor([[4.0, 0], [4, 0], [2, 0], [0, 1]])
    attention = torch.tensor([[0.0] * 4, [0.0] * 4, [0.9, 0.1, 0, 0], [0.1, 0.9, 0, 0]])
    one = decoder_view([[0, 1]], [1], attention, text=(2, 3), embeds=embeds)
    assert SparseVLM.raters(one).tolist() == [2]
    assert kept_places(SparseVLM(Schedule((0.5,))).decoder_select(one)) == [[0]]
    assert SparseVLM.raters(decoder_view([[0, 1]], [1], attention)).tolist() == [3]
