"""What several policies share: shares of a budget, spacing, batches of several sizes."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.budget import apportion_by_weight
from tokenprune.ops import max_min_select, max_sum_select
from tokenprune.policies.greedy import select_padded
from tokenprune.policies.spacing import fill_evenly


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 5)), min_size=1, max_size=8), st.data())
def test_shares_are_whole_and_fit(parts, data):
    sizes, weights = [s for s, _ in parts], torch.tensor([w for _, w in parts])
    total = data.draw(st.integers(0, sum(sizes)))
    out = apportion_by_weight(total, sizes, weights.tolist())
    assert sum(out) == total and all(0 <= n <= size for n, size in zip(out, sizes, strict=True))


def test_shares_by_hand():
    assert apportion_by_weight(7, [9, 9, 9], [1.0, 1, 1]) == [3, 2, 2]
    assert apportion_by_weight(9, [3, 9, 9], [8.0, 1, 1]) == [3, 3, 3]
    assert apportion_by_weight(3, [2, 2], [0.0, 0]) == [2, 1]
    assert apportion_by_weight(10, [9, 9, 9], [5.1, 3.3, 1.6]) == [5, 3, 2]  # .1, .3 and .6 are left over
    assert apportion_by_weight(4, [9, 0, 9], [1.0, 8, 3]) == [1, 0, 3]
    assert apportion_by_weight(9, [4, 9, 9], [8.0, 0, 0]) == [4, 3, 2]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_filled_keeps_what_is_chosen_and_spaces_the_rest(data):
    n = data.draw(st.integers(1, 40))
    k = data.draw(st.integers(0, n))
    chosen = data.draw(st.permutations(range(n)))[: data.draw(st.integers(0, k))]
    out = fill_evenly(torch.tensor(chosen, dtype=torch.int64), n, k).tolist()
    assert out == sorted(set(out)) and len(out) == k and set(chosen) <= set(out)
    others = [i for i in range(n) if i not in chosen]
    ranks = [-1, *(others.index(i) for i in out if i not in chosen), len(others)]
    steps = [b - a for a, b in itertools.pairwise(ranks)]
    assert max(steps[1:-1], default=1) - min(steps[1:-1], default=1) <= 1
    assert len(steps) == 1 or abs(steps[0] - steps[-1]) <= 1


@pytest.mark.parametrize("op", [max_min_select, max_sum_select])
def test_inputs_of_any_sizes_in_one_call(op):
    """What a GPU gets: padded, masked, and as many picks as the largest wants."""
    generator = torch.Generator().manual_seed(5)
    features = [torch.randn(n, 32, generator=generator) for n in (30, 7, 18)]
    n_keep, first = [6, 6, 15], [torch.tensor(4), torch.tensor(0), torch.tensor(17)]
    for pivot in [None, first] if op is max_min_select else [first]:
        picks = select_padded(op, features, n_keep, pivot)
        for i, (x, k) in enumerate(zip(features, n_keep, strict=True)):
            assert picks[i].tolist() == op(x[None], k, None if pivot is None else pivot[i][None])[0].tolist()
