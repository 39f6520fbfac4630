"""TokenFLEX: pooling by its raster."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.policies import TokenFlex

from .inputs import picture


@pytest.mark.parametrize(("budget", "side"), [(64, 8), (144, 12), (256, 16)])
def test_tokenflex_square_budgets(budget, side):
    tokens = picture(24, 24)
    chosen = TokenFlex().select(tokens, budget)
    assert len(chosen.indices) == budget
    raster = tokens.features.T.view(1, 4, 24, 24)
    expected = torch.nn.functional.adaptive_avg_pool2d(raster, side)[0].flatten(1).T
    torch.testing.assert_close(chosen.features, expected)
    chosen.check(576, budget, "tokenflex")


def test_tokenflex_keeps_the_picture_s_shape():
    tokens = picture(5, 7)
    chosen = TokenFlex().select(tokens, 12)  # 3 x 4: rows 0-1, 1-3, 3-4; columns 0-1, 1-3, 3-5, 5-6
    assert len(chosen.indices) == 12
    raster = tokens.features.view(5, 7, 4)
    torch.testing.assert_close(chosen.features[0], raster[0:2, 0:2].mean((0, 1)))
    torch.testing.assert_close(chosen.features[5], raster[1:4, 1:4].mean((0, 1)))
    torch.testing.assert_close(chosen.features[11], raster[3:5, 5:7].mean((0, 1)))
    assert chosen.indices[5] == 2 * 7 + 2


def test_tokenflex_pools_before_the_projector_where_it_can():
    encoder = torch.randn(16, 6)
    project = lambda x: x.relu() @ torch.ones(6, 4)
    tokens = picture(4, 4, encoder_features=encoder, project=project)
    chosen = TokenFlex().select(tokens, 4)
    pooled = encoder.view(2, 2, 2, 2, 6).mean((1, 3)).flatten(0, 1)
    torch.testing.assert_close(chosen.features, project(pooled))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_tokenflex_counts_in_any_shape(h, w, data):
    k = data.draw(st.integers(1, h * w))
    chosen = TokenFlex().select(picture(h, w), k)
    chosen.check(h * w, None, "tokenflex")
    assert k / 2 <= len(chosen.indices) <= 1.5 * k
