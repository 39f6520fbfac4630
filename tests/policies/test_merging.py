"""Only what is merged is computed: the same as merging in a copy of all tokens."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.policies.merging import group_sum, with_merged
from tokenprune.policies.types import VisualTokens

FEW = settings(deadline=None, derandomize=True, max_examples=40)


@FEW
@given(st.integers(1, 12), st.sampled_from([torch.float32, torch.bfloat16]), st.data())
def test_merged_tokens_take_their_places_among_kept_ones(n, dtype, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    tokens = VisualTokens(torch.randn(n, 4, generator=generator).to(dtype), grids=((1, 1, n),))
    order = torch.randperm(n, generator=generator)
    n_kept, n_merged = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    kept, targets = order[:n_kept], order[n_kept : n_kept + n_merged]
    merged = torch.randn(len(targets), 4, generator=generator)
    in_a_copy = tokens.features.clone()
    in_a_copy[targets] = merged.to(dtype)
    selection = with_merged(tokens, kept, targets, merged)
    assert selection.indices.tolist() == sorted(order[: n_kept + len(targets)].tolist())
    assert torch.equal(selection.features, in_a_copy[selection.indices])
    assert selection.features.dtype == dtype


@FEW
@given(st.integers(0, 12), st.integers(1, 5), st.data())
def test_sums_by_group_leave_out_what_is_in_none(m, n, data):
    group = torch.tensor(data.draw(st.lists(st.integers(0, n), min_size=m, max_size=m)), dtype=torch.int64)
    features = torch.arange(3.0 * m).view(m, 3)  # exact in any order of summing
    total, size = group_sum(features, group, n)
    assert total.shape == (n, 3) and size.shape == (n, 1)
    for i in range(n):
        assert torch.equal(total[i], features[group == i].sum(0))
        assert size[i] == (group == i).sum()
