"""DivPrune against brute force in exact arithmetic, and by hand."""

from fractions import Fraction

import torch
from hypothesis import given, settings

from tokenprune import VisualTokens
from tokenprune.ops import max_min_select
from tokenprune.policies import DivPrune

from .inputs import exact_features


def brute_force_divprune(distance: list[list], k: int) -> list[int]:
    """DivPrune by its definition, lowest index first among equals."""
    n = len(distance)

    def best(score, among):
        return max(among, key=lambda i: (score(i), -i))

    if n == 1:
        return [0]
    picked = [best(lambda i: min(distance[i][j] for j in range(n) if j != i), range(n))]
    while len(picked) < k:
        rest = [i for i in range(n) if i not in picked]
        picked.append(best(lambda i: min(distance[p][i] for p in picked), rest))
    return picked


@settings(max_examples=400, deadline=None)
@given(exact_features())
def test_divprune_is_its_definition_ties_included(case):
    """Against exact arithmetic, where every tie is a true one."""
    features, k = case
    rows = [[Fraction(int(v)) for v in row] for row in features.tolist()]
    cosine = [[sum(a * b for a, b in zip(p, q, strict=True)) / 4 for q in rows] for p in rows]
    distance = [[1 - c for c in row] for row in cosine]
    picks = max_min_select(features[None], k)[0].tolist()
    assert picks == brute_force_divprune(distance, k)
    assert len(set(picks)) == k
    if k < len(features):
        assert DivPrune().select(VisualTokens(features), k).indices.tolist() == sorted(picks)


def test_divprune_by_hand():
    """Four directions in the plane, two of them close: the close pair loses one."""
    angles = torch.tensor([0.0, 5.0, 90.0, 200.0]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], 1)
    # nearest neighbours are 5, 5, 85 and 110 degrees away: 200 is first, then 5 (165 away), then 90
    assert max_min_select(features[None], 4)[0].tolist() == [3, 1, 2, 0]
    assert DivPrune().select(VisualTokens(features), 3).indices.tolist() == [1, 2, 3]


def test_divprune_never_repeats_a_token():
    """The released code returns an index twice on duplicated features."""
    features = torch.randn(40, 16)[torch.arange(576) % 40]
    picks = max_min_select(features[None], 58)[0]
    assert len(picks.unique()) == 58
    assert len((picks % 40).unique()) == 40
