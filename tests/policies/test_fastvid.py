"""FastVID: segments, anchors, and what merges into them."""

import torch

from tokenprune.policies import FastVID

from .inputs import directions, picks, video


def test_fastvid_cuts_where_the_picture_changes():
    frames = directions(0, 1, 2, 90, 91, 92)
    assert FastVID(segments=1)._segments(frames) == [(0, 3), (3, 6)]
    assert FastVID(segments=3)._segments(frames) == [(0, 1), (1, 3), (3, 6)]
    assert FastVID(segments=9)._segments(frames) == [(i, i + 1) for i in range(6)]


def test_fastvid_by_hand():
    """One still segment of two frames: an attended token in each, and one anchor that averages the rest."""
    features = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0]])
    tokens = video(2, 1, 2, features, encoder_attention=torch.tensor([5.0, 1, 5, 1]))
    kept = FastVID(segments=1, merged=0.34).select(tokens, 3)
    assert picks(kept) == [0, 1, 2]
    assert torch.allclose(kept.features, torch.tensor([1.0, 0]).expand(3, 2))
    assert FastVID(merged=0).select(tokens, 2).features is None


def test_fastvid_weighs_its_anchor():
    """An anchor with three others: 0.6 of itself, 0.4 of their mean."""
    features = directions(0, 1, 1, 1) * torch.tensor([[1.0], [2], [3], [4]])
    tokens = video(1, 1, 4, features, encoder_attention=torch.ones(4))
    kept = FastVID(merged=1.0).select(tokens, 1)
    (anchor,) = picks(kept)
    others = features[[i for i in range(4) if i != anchor]]
    torch.testing.assert_close(kept.features[0], 0.6 * features[anchor] + 0.4 * others.mean(0))
