"""FastVID: segments, anchors, and what merges into them."""

import torch

from tokenprune.policies import FastVID
from tokenprune.policies.segments import segments

from .inputs import directions, picks, video


def test_fastvid_cuts_where_the_picture_changes():
    frames = directions(0, 1, 2, 90, 91, 92)
    assert segments(frames, 1, 0.9) == [(0, 3), (3, 6)]
    assert segments(frames, 3, 0.9) == [(0, 1), (1, 3), (3, 6)]
    assert segments(frames, 9, 0.9) == [(i, i + 1) for i in range(6)]


def test_fastvid_by_hand():
    """One still segment of two frames: an attended token in each, and in the last frame the anchors of both."""
    features = torch.tensor([[1.0, 0]] * 3 + [[2.0, 0], [1, 0], [1, 0], [3, 0], [1, 0]])
    tokens = video(2, 1, 4, features, encoder_attention=torch.tensor([5.0, 1, 1, 1, 1, 5, 1, 1]))
    kept = FastVID(segments=1, merged=0.5).select(tokens, 4)
    # Frame 2 without its salient token is 1, 3, 1. The first of the two equal ones and the other are anchors; both
    # are as near to all, and equal ones join the first.
    assert picks(kept) == [0, 4, 5, 6]
    mean = torch.tensor([1 + 1 + 2 + 1 + 3 + 1, 0.0]) / 6
    torch.testing.assert_close(kept.features[1], 0.6 * features[4] + 0.4 * mean)
    torch.testing.assert_close(kept.features[[0, 2, 3]], features[[0, 5, 6]])
    assert FastVID(merged=0).select(tokens, 2).features is None
    assert picks(FastVID(segments=1).select(tokens, 2)) == [0, 5]  # one token a frame: no anchors


def test_fastvid_splits_anchors_over_every_fourth_frame_from_the_end():
    policy = FastVID()
    assert policy._by_anchor_frame(12, [9] * 6) == [0, 6, 0, 0, 0, 6]
    assert policy._by_anchor_frame(5, [9] * 5) == [2, 0, 0, 0, 3]
    assert policy._by_anchor_frame(8, [3, 3, 3, 3]) == [1, 2, 2, 3]  # the anchor frame is full
    assert FastVID(every=1)._by_anchor_frame(4, [3, 3]) == [2, 2]


def test_fastvid_tokens_join_an_anchor_in_every_anchor_frame():
    """With an anchor in each of two frames, both average all tokens of the segment."""
    features = directions(0, 1, 2, 3) * torch.tensor([[1.0], [2], [3], [4]])
    tokens = video(2, 1, 2, features, encoder_attention=torch.ones(4))
    kept = FastVID(segments=1, merged=1.0, every=1).select(tokens, 2)
    expected = 0.6 * features[picks(kept)] + 0.4 * features.mean(0)
    torch.testing.assert_close(kept.features, expected)


def test_fastvid_weighs_its_anchor():
    """An anchor with three others: 0.6 of itself, 0.4 of the mean of all four."""
    features = directions(0, 1, 1, 1) * torch.tensor([[1.0], [2], [3], [4]])
    tokens = video(1, 1, 4, features, encoder_attention=torch.ones(4))
    kept = FastVID(merged=1.0).select(tokens, 1)
    (anchor,) = picks(kept)
    torch.testing.assert_close(kept.features[0], 0.6 * features[anchor] + 0.4 * features.mean(0))
    kept = FastVID(merged=1.0, anchor=0.0).select(tokens, 1)
    torch.testing.assert_close(kept.features[0], 0.2 * features[anchor] + 0.8 * features.mean(0))
