"""Grid: evenly spaced tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune import VisualTokens
from tokenprune.policies import Grid

from .inputs import picture


@pytest.mark.parametrize(
    ("h", "w", "k", "kept"),
    [
        (4, 4, 4, [5, 7, 13, 15]),  # rows 1 and 3, columns 1 and 3
        (4, 4, 1, [10]),
        (2, 8, 4, [9, 11, 13, 15]),  # a wide picture: one row
        (3, 3, 5, [0, 2, 6, 7, 8]),  # two rows, of 2 and 3
    ],
)
def test_grid_by_hand(h, w, k, kept):
    assert Grid().select(picture(h, w), k).indices.tolist() == kept


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_grid_keeps_exactly_its_budget_in_any_shape(h, w, data):
    k = data.draw(st.integers(1, h * w))
    selection = Grid().select(picture(h, w), k)
    selection.check(h * w, k, "grid")
    rows = torch.bincount(selection.indices // w, minlength=h)
    used = rows[rows > 0]
    assert used.max() - used.min() <= 1  # rows share evenly


def test_grid_over_several_rasters_and_none():
    tokens = VisualTokens(torch.randn(16 + 24, 4), grids=((1, 4, 4), (1, 4, 6)))
    indices = Grid().select(tokens, 10).indices
    assert (indices < 16).sum() == 4
    assert len(Grid().select(VisualTokens(torch.randn(11, 4)), 3).indices) == 3
