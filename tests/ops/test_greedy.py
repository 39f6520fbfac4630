"""`max_min_select` and `max_sum_select`: every implementation is the reference, and every pick is greedy."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.ops import implementation, max_min_select, max_sum_select
from tokenprune.ops.host import farthest, products

from .cases import CASES, DEVICE, DTYPES, FAST, answers, batches, check_picks, needs_triton, on_cases


@on_cases(2000, batches())
def test_max_min_is_the_references_to_the_bit(name, case):
    x, _, mask, k = case
    check_picks(name, max_min_select, x, k, None, mask)


@on_cases(2000, batches())
def test_max_min_from_a_pivot_is_the_references_to_the_bit(name, case):
    x, first, mask, k = case
    check_picks(name, max_min_select, x, k, first, mask)


@on_cases(2000, batches())
def test_max_sum_is_the_references_to_the_bit(name, case):
    x, first, mask, k = case
    check_picks(name, max_sum_select, x, k, first, mask)


@on_cases(500, batches(), st.data())
def test_distances_that_count_lengths_and_several_first_picks(name, case, data):
    """Lengths from a continuum: no two distances are so near that rounding could decide."""
    x, first, mask, k = case
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    x = torch.randn(x.shape, generator=generator).to(x) * (0.2 + torch.rand(*x.shape[:2], 1, generator=generator)).to(x)
    length = data.draw(st.sampled_from([0.25, 0.75, 1.0]))
    if data.draw(st.booleans()):
        likes = torch.rand(x.shape[:2], generator=generator).to(x.device)
        likes = likes if mask is None else likes.masked_fill(~mask, -1)
        best = likes.sort(dim=1, descending=True, stable=True)
        first = best.indices.masked_fill(best.values < 0, -1)[:, : data.draw(st.integers(1, 5))]
        first[0, data.draw(st.integers(1, 5)) :] = -1
    elif data.draw(st.booleans()):
        first = None
    expected, answer = answers(name, max_min_select, x, k, first, mask, length)
    assert torch.equal(answer, expected)


def test_a_distance_that_counts_lengths_by_hand():
    """Lengths 1, 3, 1, 1 with mean 1.5: by direction 2 is farthest from 0, by length 1 is."""
    x = torch.tensor([[[1.0, 0], [3.0, 0], [0.0, 1], [0.8, 0.6]]])
    first = torch.tensor([0])
    assert max_min_select(x, 2, first)[0].tolist() == [0, 2]
    assert max_min_select(x, 2, first, length=1.0)[0].tolist() == [0, 1]
    assert max_min_select(x, 3, torch.tensor([[3, 1]]))[0].tolist() == [3, 1, 2]


@pytest.mark.parametrize("name", ["reference", *FAST])
@pytest.mark.parametrize("op", [max_min_select, max_sum_select])
def test_picks_of_arbitrary_features_are_greedy(op, name):
    """Every pick is the best by float64 similarities, within what float32 can tell."""
    generator = torch.Generator().manual_seed(3)
    for dtype in DTYPES:
        x = torch.randn(2, 150, 96, generator=generator).cumsum(1).to(DEVICE, dtype)
        first = torch.tensor([7, 0], device=DEVICE)
        with implementation(name):
            picks = op(x, 60, first)
            assert torch.equal(op(x, 25, first), picks[:, :25])  # fewer picks are the first of more
        unit = F.normalize(x.double(), dim=-1)
        similarity = unit @ unit.mT
        for image, chosen in enumerate(picks.tolist()):
            assert chosen[0] == first[image]
            for i in range(1, len(chosen)):
                to_picks = similarity[image][:, chosen[:i]]
                score = to_picks.amax(1) if op is max_min_select else to_picks.sum(1)
                score[chosen[:i]] = torch.inf
                assert score[chosen[i]] <= score.min() + 1e-6 * i


@pytest.mark.parametrize("name", ["reference", *FAST])
def test_the_start_is_the_most_isolated_token(name):
    x = torch.randn(1, 200, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    unit = F.normalize(x[0].double(), dim=-1)
    similarity = (unit @ unit.T).fill_diagonal_(-1)
    with implementation(name):
        assert int(max_min_select(x, 1)) == int(similarity.amax(1).argmin())


def test_batches_masks_and_a_given_pivot():
    x = torch.randn(3, 20, 8)
    together = max_min_select(x, 6)
    for row, picks in zip(x, together, strict=True):
        assert picks.tolist() == max_min_select(row[None], 6)[0].tolist()
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[:, 15:] = False
    masked = max_min_select(x, 6, mask=mask)
    assert masked.tolist() == max_min_select(x[:, :15], 6).tolist()
    pivot = max_min_select(x, 6, first=together[:, 0])
    assert pivot.tolist() == together.tolist()
    surplus = max_min_select(x, 16, mask=mask)
    assert (surplus[:, 15] == -1).all() and (surplus[:, :15] >= 0).all()
    with pytest.raises(ValueError, match=r"\(B, N, D\)"):
        max_min_select(x[0], 2)


@pytest.fixture
def long(monkeypatch):
    """All inputs are taken for long ones, and blocks are small."""
    monkeypatch.setattr(products, "GRAM_LIMIT", 0)
    monkeypatch.setattr(products, "gram", None)
    monkeypatch.setattr(farthest, "_COLUMNS", 5)
    monkeypatch.setattr(farthest, "_ROWS", 7)
    monkeypatch.setattr(farthest, "_SETTLED", 2)
    monkeypatch.setattr(farthest, "_GROUPS", (3, 6))


@given(batches(), st.booleans(), st.sampled_from([0.0, 0.0, 0.5]))
@settings(CASES, max_examples=500)
def test_long_inputs_are_the_references_to_the_bit(long, case, seek, length):
    """Cosines are exact, and with lengths so are their sums: the lengths are powers of two, and so is their mean."""
    x, first, mask, k = case
    if length:
        x = F.normalize(x.float(), dim=-1)
    first = None if seek else first
    expected, answer = answers("host", max_min_select, x, k, first, mask, length)
    assert torch.equal(answer, expected)


@given(batches())
@settings(CASES, max_examples=100)
def test_sums_of_long_inputs_are_the_references_to_the_bit(long, case):
    x, first, mask, k = case
    expected, answer = answers("host", max_sum_select, x, k, first, mask)
    assert torch.equal(answer, expected)


def test_long_inputs_of_any_numbers_are_the_references(long):
    """Random, alike in groups, repeated, and along a curve; from one or several first picks, and with lengths."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 32, generator=generator)
    groups = x[torch.randint(20, (300,), generator=generator)] + 0.2 * x
    repeated = x[torch.randint(80, (300,), generator=generator)]
    for features in (x, groups, repeated, x.cumsum(0)):
        k = min(120, len(features.unique(dim=0)))  # rounding decides between what repeats a pick
        for first in (None, torch.tensor([5]), torch.tensor([[7, 200, 3]])):
            for length in (0.0, 0.75):
                expected, answer = answers("host", max_min_select, features[None], k, first, None, length)
                assert torch.equal(expected, answer)
    first = torch.tensor([5])
    expected, answer = answers("host", max_sum_select, x[None], 60, first)
    assert torch.equal(expected, answer)


def test_a_long_input_with_nan_ends(long):
    x = torch.randn(1, 40, 8)
    x[0, 20, 3] = torch.nan
    assert max_min_select(x, 20).shape == (1, 20)


def test_two_tokens_that_are_each_others_nearest_are_a_tie(long):
    """4 and 9 are far from all others and near each other: 4 is first, from whichever of them it is found."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        x = torch.zeros(1, 30, 24)
        x[0, :, :6] = 1 + 0.1 * torch.randn(30, 6, generator=generator)
        x[0, [4, 9]] = torch.zeros(2, 24)
        x[0, [4, 9], 6:] = torch.randn(2, 18, generator=generator)
        assert int(max_min_select(x, 1)) == 4


@needs_triton
@given(batches(), st.sampled_from([0.0, 0.5]), st.booleans(), st.booleans())
@settings(CASES, max_examples=300)
def test_streamed_ops_are_the_references(case, length, seek, summed):
    """What kernels do where the similarities of one input take more than the workspace."""
    from tokenprune.ops.kernels import streamed

    x, first, mask, k = case
    if summed:
        with implementation("reference"):
            expected = max_sum_select(x, k, first, mask)
        assert torch.equal(streamed.greedy(x, k, first[:, None], mask, True), expected)
        return
    x = F.normalize(x.float(), dim=-1) if length else x
    first = None if seek else first
    with implementation("reference"):
        expected = max_min_select(x, k, first, mask, length)
    given = None if first is None else first[:, None]
    assert torch.equal(streamed.greedy(x, k, given, mask, False, length), expected)


PEAK = """
import resource, sys, torch
from tokenprune.ops import max_min_select
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
n, seek = int(sys.argv[1]), sys.argv[2] == "seek"
torch.set_num_threads(1)
x, first = torch.randn(1, n, 1024), torch.tensor([3])
torch.mm(x[0, :512], x[0, :512].T)
max_min_select(x[:, :64], 8, None if seek else first)
before = peak()
max_min_select(x, 256, None if seek else first)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, for the peak of resident memory")
@pytest.mark.parametrize(
    ("n", "start", "limit"),
    [
        (11_520, "pivot", 64),
        (12_000, "seek", 200),  # 48 MB of features; N x N would be 576
    ],
)
def test_memory_stays_bounded(n, start, limit):
    run = subprocess.run([sys.executable, "-c", PEAK, str(n), start], capture_output=True, text=True, check=True)
    assert float(run.stdout) < limit
