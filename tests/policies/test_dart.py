"""DART: what is least like its pivots."""

import torch

from tokenprune.policies import DART

from .inputs import decoder_view, directions, kept_places


def test_dart_by_hand():
    """Token 0 has the loudest key; of the rest it is least like 3, and the word is least like 1."""
    keys = torch.tensor([[9.0], [1], [1], [1], [2]])
    hidden = torch.cat([directions(0, 60, 20, 90), directions(110)])
    one = decoder_view([[0, 1, 2, 3]], [3], text=(4,), keys=keys, hidden=hidden)
    # 3 is 90 degrees from 0; of 1 and 2, 20 degrees is farther from 110
    assert kept_places(DART(pivots=1).decoder_select(one)) == [[0, 2, 3]]
    assert kept_places(
        DART(pivots=4).decoder_select(decoder_view([[0, 1, 2, 3]], [1], text=(4,), keys=keys, hidden=hidden))
    ) == [[0]]
    assert DART().decoder_select(decoder_view([[0, 1]], [2], keys=keys, hidden=hidden)) is None
