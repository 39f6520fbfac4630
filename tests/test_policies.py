"""What each policy picks, against brute force and cases worked out by hand."""

from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune import Policy, Selection, VisualTokens
from tokenprune.budget import spread
from tokenprune.ops import max_min_select
from tokenprune.policies import DivPrune, Grid, Random
from tokenprune.policies.base import select


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


def repeated(draw, x: torch.Tensor, generator) -> torch.Tensor:
    """The rows of x as they are, or with duplicates, all equal, all zero, or some zero."""
    kind = draw(st.sampled_from(["distinct", "duplicated", "constant", "zero", "some zero"]))
    n = len(x)
    if kind == "duplicated":
        return x[torch.randint(0, max(1, n // 3), (n,), generator=generator)]
    if kind == "constant":
        return x[:1].expand_as(x).clone()
    if kind == "zero":
        return torch.zeros_like(x)
    if kind == "some zero":
        return x.masked_fill(torch.rand(n, 1, generator=generator) < 0.4, 0)
    return x


@st.composite
def exact_features(draw):
    """Vectors of length 2 with entries -1, 0, 1: every cosine is a quarter, exact in any order of summing."""
    n, d = draw(st.integers(1, 20)), draw(st.integers(4, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    places = torch.rand(n, d, generator=generator).argsort(1)[:, :4]
    signs = torch.randint(0, 2, (n, 4), generator=generator) * 2.0 - 1
    x = repeated(draw, torch.zeros(n, d).scatter(1, places, signs), generator)
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    return x.to(dtype), draw(st.integers(1, n))


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


@st.composite
def real_features(draw):
    n, d = draw(st.integers(1, 24)), draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = repeated(draw, torch.randn(n, d, generator=generator), generator)
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    return x.to(dtype), draw(st.integers(1, n))


@settings(max_examples=400, deadline=None)
@given(real_features())
def test_divprune_on_float32_distances(case):
    """On real numbers, where the last bit of a distance may decide: the same float32 distances."""
    features, k = case
    unit = torch.nn.functional.normalize(features[None].float(), dim=-1)
    distance = (1 - unit @ unit.mT)[0].tolist()
    picks = max_min_select(features[None], k)[0].tolist()
    assert picks == brute_force_divprune(distance, k)
    assert len(set(picks)) == k


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
    with pytest.raises(ValueError, match="k=16"):
        max_min_select(x, 16, mask=mask)
    with pytest.raises(ValueError, match=r"\(B, N, D\)"):
        max_min_select(x[0], 2)


def picture(h, w, t=1, **kwargs):
    return VisualTokens(torch.randn(t * h * w, 4), grids=((t, h, w),), **kwargs)


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


def test_random_depends_on_seed_place_and_size_alone():
    a = Random(seed=1).select(picture(6, 6), 9).indices
    assert torch.equal(a, Random(seed=1).select(picture(6, 6), 9).indices)
    assert not torch.equal(a, Random(seed=2).select(picture(6, 6), 9).indices)
    assert not torch.equal(a, Random(seed=1).select(picture(6, 6, index=1), 9).indices)
    counts = torch.zeros(36)
    for seed in range(600):
        counts[Random(seed=seed).select(picture(6, 6), 9).indices] += 1
    assert counts.min() > 100  # expected 150
    assert counts.max() < 200


def test_video_budget_is_spread_over_frames():
    tokens = picture(4, 4, t=3, kind="video")
    for policy in (Random(), Grid()):
        indices = select(policy, tokens, 10).indices
        assert torch.bincount(indices // 16).tolist() == [3, 3, 4]
    few = select(Random(), tokens, 2).indices // 16
    assert len(few.unique()) == 2
    # DivPrune sees the whole video: of three equal frames two bring nothing new
    frame = torch.randn(16, 8)
    still = VisualTokens(torch.cat([frame] * 3), grids=((3, 4, 4),), kind="video")
    assert len((select(DivPrune(), still, 16).indices % 16).unique()) == 16


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.data())
def test_spread(sizes, data):
    total = data.draw(st.integers(0, sum(sizes)))
    if sum(sizes) == 0:
        return
    shares = spread(total, sizes)
    assert sum(shares) == total
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    with pytest.raises(ValueError, match="cannot share"):
        spread(sum(sizes) + 1, sizes)


@pytest.mark.parametrize(
    ("indices", "match"),
    [
        (torch.tensor([0, 1]), "kept 2 of 16"),
        (torch.tensor([0, 2, 1]), "ascending"),
        (torch.tensor([0, 1, 1]), "ascending"),
        (torch.tensor([-1, 0, 1]), r"\[0, 16\)"),
        (torch.tensor([1, 2, 16]), r"\[0, 16\)"),
        (torch.tensor([0.0, 1.0, 2.0]), "int64"),
        ([0, 1, 2], "int64"),
    ],
)
def test_bad_answers_of_a_policy_are_errors(indices, match):
    @dataclass
    class Bad(Policy):
        def select(self, tokens, n_keep):
            return Selection(indices)

    with pytest.raises(ValueError, match=match):
        select(Bad(), picture(4, 4), 3)
