"""Removing duplicates in rounds: as the definition does, whatever is held of the similarities."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.policies import duplicates

from ..ops.cases import CASES
from .inputs import exact_features


def by_definition(unit, n_keep, step):
    """Every round looks at all pairs."""
    similarity, queue = (unit @ unit.T).nan_to_num(nan=torch.inf), list(range(len(unit)))
    while len(queue) > max(1, n_keep):
        even, odd = queue[::2], queue[1::2]
        nearest = dict(zip(even, similarity[even][:, odd].amax(1).tolist(), strict=True))
        even = sorted(even, key=lambda i: -nearest[i])  # equal ones stay in order
        queue = even[min(step, len(queue) - n_keep) :] + odd
    return sorted(queue)


@pytest.fixture(params=["all similarities", "in blocks"])
def held(request, monkeypatch):
    """Few neighbours are held, so that they run out."""
    monkeypatch.setattr(duplicates, "_MATRIX_LIMIT", 10**6 if request.param == "all similarities" else 0)
    monkeypatch.setattr(duplicates, "_NEAREST", (2, 2))
    monkeypatch.setattr(duplicates, "_ROWS", 7)


@given(exact_features(), st.integers(1, 9))
@settings(CASES, max_examples=500)
def test_rounds_on_exact_cosines(held, drawn, step):
    """All cosines are quarters, so there are many ties."""
    features, n_keep = drawn
    unit = F.normalize(features.float(), dim=-1)
    assert duplicates.without_duplicates(unit, n_keep, step).tolist() == by_definition(unit, n_keep, step)


@pytest.mark.parametrize("kind", ["random", "groups", "repeated", "alternating", "curve"])
def test_rounds_on_any_numbers(held, kind):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(203, 24, generator=generator)
    if kind == "groups":
        x = x[torch.randint(12, (203,), generator=generator)] + 0.3 * x
    elif kind == "repeated":
        x = x[torch.randint(60, (203,), generator=generator)]
    elif kind == "alternating":  # even tokens are alike, and odd ones are
        x = x[:2].repeat(102, 1)[:203] + 0.1 * x
    elif kind == "curve":
        x = x.cumsum(0)
    unit = F.normalize(x, dim=-1)
    for n_keep, step in ((20, 8), (101, 3), (1, 64), (202, 8)):
        expected = by_definition(unit, n_keep, step)
        assert duplicates.without_duplicates(unit, n_keep, step).tolist() == expected
        assert duplicates._by_matrix(unit, n_keep, step).tolist() == expected


def test_nan_is_like_everything(held):
    """A token with NaN is as similar as can be to all others."""
    unit = F.normalize(torch.randn(41, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    unit[20, 2] = torch.nan
    expected = by_definition(unit, 9, 4)
    assert duplicates.without_duplicates(unit, 9, 4).tolist() == duplicates._by_matrix(unit, 9, 4).tolist() == expected


def test_what_is_left_goes_before_the_odd_ones():
    """0 is nearest to an odd one and leaves. In the queue 2, 4, 1, 3, then, 2 is compared with 4 and 3, and leaves."""
    angles = torch.deg2rad(torch.tensor([0.0, 5, 30, 50, 100]))
    unit = torch.stack([angles.cos(), angles.sin()], 1)
    assert duplicates.without_duplicates(unit, 4, 1).tolist() == [1, 2, 3, 4]
    assert duplicates.without_duplicates(unit, 3, 1).tolist() == [1, 3, 4]


def test_what_is_small_enough_stays_whole():
    unit = torch.eye(3)
    assert duplicates.without_duplicates(unit, 3, 8).tolist() == [0, 1, 2]
    assert duplicates.without_duplicates(unit[:1], 1, 8).tolist() == [0]
