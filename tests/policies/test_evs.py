"""EVS: what changed since the frame before."""

import torch

from tokenprune.policies import EVS

from .inputs import directions, picks, video


def test_evs_by_hand():
    """Three frames of two tokens: the first whole, then what changed most."""
    features = torch.cat([directions(0, 0), directions(0, 30), directions(90, 40)])
    assert picks(EVS().select(video(3, 1, 2, features), 2)) == [0, 1]
    assert picks(EVS().select(video(3, 1, 2, features), 3)) == [0, 1, 4]
    assert picks(EVS().select(video(3, 1, 2, features), 4)) == [0, 1, 3, 4]
    still = video(3, 1, 2, torch.ones(6, 2))
    assert picks(EVS().select(still, 4)) == [0, 1, 2, 3]  # the earliest of equals
    assert len(picks(EVS().select(still, 1))) == 1
