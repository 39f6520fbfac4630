"""FlashVID: selected tokens, trees along time, and their clusters, by hand."""

import torch

from tokenprune.policies import FlashVID

from .inputs import picks, video

# In each of two frames one token along x, which attention names, and two along y.
FEATURES = torch.tensor([[1.0, 0], [0, 1], [0, 2], [1, 0], [0, 3], [0, 5]])
ATTENTION = torch.tensor([5.0, 1, 1] * 2)
POLICY = FlashVID(segments=1, threshold=-1, alpha=0.5)


def select(policy, k, features=FEATURES):
    kept = policy.select(video(2, 1, 3, features, encoder_attention=ATTENTION), k)
    return picks(kept), kept.features


def test_flashvid_averages_trees():
    """Both later tokens along y are linked to the first of the earlier ones, which are equally similar."""
    kept, features = select(POLICY, 4)
    assert kept == [0, 1, 2, 3]
    torch.testing.assert_close(features, torch.tensor([[1.0, 0], [0, (1 + 3 + 5) / 3], [0, 2], [1, 0]]))


def test_flashvid_clusters_trees():
    """Of three, one is left for the two trees of the first frame: the first is the centre, and both are averaged."""
    kept, features = select(POLICY, 3)
    assert kept == [0, 1, 3]
    torch.testing.assert_close(features[1], torch.tensor([0.0, (3 + 2) / 2]))


def test_flashvid_selects_alone_where_nothing_is_left():
    assert select(POLICY, 2) == ([0, 3], None)
    assert select(FlashVID(alpha=1.0), 4)[1] is None


def test_flashvid_cuts_the_weakest_link_where_trees_are_too_few():
    """Five of six: three trees of four tokens, so that one link is left of two."""
    features = FEATURES.clone()
    features[5] = torch.tensor([3.0, 4.0])  # cosine 0.8 with those along y, below that of token 4
    kept, merged = select(FlashVID(segments=1, threshold=-1, alpha=0.3, linked=0.5), 5, features)
    assert kept == [0, 1, 2, 3, 5]
    torch.testing.assert_close(merged[[1, 2, 4]], torch.tensor([[0.0, 2], [0, 2], [3, 4]]))


def test_flashvid_links_within_a_segment_only():
    kept, merged = select(FlashVID(segments=2, alpha=0.5), 4)
    assert kept == [0, 1, 3, 4]  # one cluster in each frame
    torch.testing.assert_close(merged[[1, 3]], torch.tensor([[0.0, 1.5], [0, 4]]))


def test_flashvid_weighs_distances_by_attention():
    """Three directions at 90 degrees: all as far from their neighbours, so attention decides each pick."""
    features, attention = torch.eye(4), torch.tensor([1.0, 3, 2, 4])
    tokens = video(1, 2, 2, features, encoder_attention=attention)
    assert [picks(FlashVID(alpha=1.0).select(tokens, k)) for k in (1, 2, 3)] == [[3], [1, 3], [1, 2, 3]]
    tokens = video(1, 2, 2, features[[0, 1, 1, 2]], encoder_attention=torch.tensor([1.0, 3, 2, 0.5]))
    # Tokens 1 and 2 are alike, so neither is far from its neighbour; then attention decides, but never for both.
    assert [picks(FlashVID(alpha=1.0).select(tokens, k)) for k in (1, 2, 3)] == [[0], [0, 1], [0, 1, 3]]
