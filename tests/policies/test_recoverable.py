"""Recoverable Compression: outliers, the question, and merging."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import LocalOutlierFactor

from tokenprune import VisualTokens
from tokenprune.policies import Recoverable
from tokenprune.policies.recoverable import outlier_share


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(25, 300), st.sampled_from([10, 20]))
def test_outliers_are_scikit_learn_s(seed, n, neighbours):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, generator=generator, dtype=torch.float64).exp()
    labels = LocalOutlierFactor(n_neighbors=neighbours).fit_predict(values[:, None].numpy())
    assert outlier_share(values, neighbours) == pytest.approx((labels == -1).mean())


def test_outliers_none_one_several():
    even = torch.arange(50.0)
    assert outlier_share(even, 5) == 0
    assert outlier_share(torch.cat([even, torch.tensor([500.0])]), 5) == pytest.approx(1 / 51)
    assert outlier_share(torch.cat([even, torch.tensor([500.0, -300.0, 900.0])]), 5) == pytest.approx(3 / 53)


def test_recoverable_by_hand():
    """Eight tokens, budget four: two by attention, one by the question, one centre that takes the rest in."""
    attention = torch.tensor([0.30, 0.20, 0.05, 0.04, 0.15, 0.10, 0.09, 0.07])
    features = torch.eye(8)
    tokens = VisualTokens(
        features,
        text=torch.eye(8)[3:4],  # the question is about token 3
        encoder_attention=attention,
        encoder_keys=torch.eye(8),
    )
    chosen = Recoverable(cluster=2).select(tokens, 5)
    # 5 = 2 by attention (0, 1) + 1 by the question (3) + 1 centre (4) + 1 for what is left (5)
    assert chosen.indices.tolist() == [0, 1, 3, 4, 5]
    torch.testing.assert_close(chosen.features[:3], features[[0, 1, 3]])
    # all keys are equally far, so the centre takes two of the others, weighted by attention
    centre = chosen.features[3]
    assert centre[4] == 1
    assert (centre > 0).sum() == 3
    others = [2, 5, 6, 7]
    left = (attention[others, None] * features[others]).sum(0)
    torch.testing.assert_close(chosen.features[4], left)
    mean = Recoverable(cluster=2, normalise=True).select(tokens, 5).features[4]
    torch.testing.assert_close(mean, left / attention[others].sum())


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 60), st.data())
def test_recoverable_keeps_its_budget(n, data):
    k = data.draw(st.integers(1, n - 1))
    tokens = VisualTokens(
        torch.randn(n, 6), text=torch.randn(3, 6), encoder_attention=torch.rand(n), encoder_keys=torch.randn(n, 5)
    )
    Recoverable().select(tokens, k).check(n, k, "recoverable")
    Recoverable().select(tokens, None).check(n, None, "recoverable")


def test_recoverable_hears_the_question():
    features, keys = torch.randn(40, 8), torch.randn(40, 8)
    asked = lambda i: VisualTokens(
        features, text=features[i][None], encoder_attention=torch.arange(40.0), encoder_keys=keys
    )
    for i in (2, 5, 11):
        assert i in Recoverable().select(asked(i), 8).indices
