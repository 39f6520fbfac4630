"""HoloV: a share for each part of the picture."""

import pytest
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


def test_holov_gives_what_is_left_over_to_the_largest_shares():
    """Shares of 5 are 3.12, 1.25 and 0.63: the one that is missing goes to the first part, the largest."""
    attention = torch.tensor([1.0, 1, 1, 1, 1, 0.8, 0.6, 0.3, 0.2, 0.1, 0.4, 0.3, 0.1, 0.1, 0.1])
    tokens = VisualTokens(torch.ones(15, 3), encoder_attention=attention)
    assert picks(HoloV(parts=3).select(tokens, 5)) == [0, 1, 2, 3, 5]
    uneven = VisualTokens(torch.ones(7, 3), encoder_attention=torch.ones(7))  # parts of three, two and two
    assert picks(HoloV(parts=3).select(uneven, 3)) == [0, 3, 5]


def test_holov_and_what_a_full_part_cannot_take():
    """The first part has nine tenths of the attention, a share of 5 of 6, and two tokens."""
    attention = torch.tensor([9.0, 9, 0.6, 0.4, 0.7, 0.3])
    tokens = VisualTokens(torch.ones(6, 3), encoder_attention=attention)
    assert picks(HoloV(parts=3).select(tokens, 5)) == [0, 1]
    assert picks(HoloV(parts=3, surplus="shared").select(tokens, 5)) == [0, 1, 2, 3, 4]
    zeros = HoloV(parts=3, surplus="zeros").select(tokens, 5)
    assert picks(zeros) == [0, 1, 2, 3, 4]
    assert zeros.features.sum(1).tolist() == [3, 3, 0, 0, 0]
    assert [HoloV(surplus=each).exact for each in ("unused", "shared", "zeros")] == [False, True, True]
    with pytest.raises(ValueError, match="surplus='x' is unknown; accepted: 'unused', 'shared', 'zeros'"):
        HoloV(surplus="x")


def test_holov_adds_what_varies():
    features = directions(0, 0, 0, 90)
    tokens = VisualTokens(features, encoder_attention=torch.ones(4))
    # 90 degrees is as unlike each other: no variance; the others see two of their kind and one that is not
    assert 3 not in picks(HoloV(parts=1, alpha=1).select(tokens, 3))
