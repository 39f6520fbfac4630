"""HoloV: a share for each part of the picture."""

import torch

from tokenprune import VisualTokens
from tokenprune.policies import HoloV

from .inputs import directions, picks


def test_holov_gives_parts_their_share():
    """Two parts of four; the second is attended thrice as much: one and three of four, the best in each."""
    attention = torch.tensor([1.0, 4, 2, 1, 8, 2, 8, 6])
    tokens = VisualTokens(torch.ones(8, 3), encoder_attention=attention)
    assert picks(HoloV(parts=2).select(tokens, 4)) == [1, 4, 6, 7]
    assert picks(HoloV(parts=1).select(tokens, 4)) == [1, 4, 6, 7]
    assert picks(HoloV(parts=8).select(tokens, 3)) == [4, 6, 7]


def test_holov_adds_what_varies():
    features = directions(0, 0, 0, 90)
    tokens = VisualTokens(features, encoder_attention=torch.ones(4))
    # 90 degrees is as unlike each other: no variance; the others see two of their kind and one that is not
    assert 3 not in picks(HoloV(parts=1, alpha=1).select(tokens, 3))
