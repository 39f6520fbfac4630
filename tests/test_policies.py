"""What each policy picks, against brute force and cases worked out by hand."""

from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import LocalOutlierFactor

from tokenprune import Policy, Selection, VisualTokens
from tokenprune.budget import spread
from tokenprune.ops import max_min_select, max_sum_select
from tokenprune.policies import DivPrune, FoPru, Grid, Random, Recoverable, ToDRE, TokenFlex
from tokenprune.policies.base import select as select_all
from tokenprune.policies.greedy import together
from tokenprune.policies.recoverable import outlier_share


def select(policy, tokens, n_keep):
    return select_all(policy, [tokens], [n_keep])[0]


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
    surplus = max_min_select(x, 16, mask=mask)
    assert (surplus[:, 15] == -1).all() and (surplus[:, :15] >= 0).all()
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


def test_random_depends_on_seed_place_text_and_size_alone():
    a = Random(seed=1).select(picture(6, 6), 9).indices
    assert torch.equal(a, Random(seed=1).select(picture(6, 6), 9).indices)
    assert not torch.equal(a, Random(seed=2).select(picture(6, 6), 9).indices)
    assert not torch.equal(a, Random(seed=1).select(picture(6, 6, index=1), 9).indices)
    words = torch.randn(2, 5, 16)
    drawn = [Random().select(picture(6, 6, text=text), 9).indices for text in words]
    assert not torch.equal(*drawn)
    assert torch.equal(drawn[0], Random().select(picture(6, 6, text=words[0].clone()), 9).indices)
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


# ---------------------------------------------------------------- FoPru


def test_fopru_rank_and_row_differ():
    """4 x 4: the brightest tokens are scattered, the brightest rows are not."""
    scores = torch.tensor([[9, 0, 0, 0], [2, 2, 2, 2], [0, 0, 0, 8], [3, 3, 0, 3]], dtype=torch.float32).flatten()
    tokens = picture(4, 4, encoder_attention=scores)
    assert FoPru().select(tokens, 4).indices.tolist() == [0, 11, 12, 13]  # 9, 8, then the first two 3s
    # rows sum to 9, 8, 8, 9; the lower index wins a tie
    assert FoPru(strategy="row").select(tokens, 4).indices.tolist() == [0, 1, 2, 3]
    assert FoPru(strategy="row").select(tokens, 8).indices.tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    assert FoPru(strategy="row").select(tokens, 12).indices.tolist() == [*range(8), *range(12, 16)]
    assert len(FoPru(strategy="row").select(tokens, 1).indices) == 4  # at least one row
    with pytest.raises(ValueError, match="accepted: 'rank', 'row'"):
        FoPru(strategy="column")
    with pytest.raises(ValueError, match="needs the raster"):
        FoPru(strategy="row").select(VisualTokens(torch.randn(16, 4), encoder_attention=scores), 4)


# ---------------------------------------------------------------- ToDRE


def brute_force_max_sum(rows: list[list], k: int, first: int) -> list[int]:
    """ToDRE v2 by its definition, lowest index first among equals."""
    picked = [first]
    while len(picked) < k:
        rest = [i for i in range(len(rows)) if i not in picked]
        picked.append(min(rest, key=lambda i: (sum(rows[p][i] for p in picked), i)))
    return picked


@settings(max_examples=300, deadline=None)
@given(exact_features(), st.data())
def test_max_sum_is_its_definition(case, data):
    features, k = case
    first = data.draw(st.integers(0, len(features) - 1))
    rows = [[Fraction(int(v)) for v in row] for row in features.tolist()]
    cosine = [[sum(a * b for a, b in zip(p, q, strict=True)) / 4 for q in rows] for p in rows]
    picks = max_sum_select(features[None], k, torch.tensor([first]))[0].tolist()
    assert picks == brute_force_max_sum(cosine, k, first)


@pytest.mark.parametrize("op", [max_min_select, max_sum_select])
def test_inputs_of_any_sizes_in_one_call(op):
    """What a GPU gets: padded, masked, and as many picks as the largest wants."""
    generator = torch.Generator().manual_seed(5)
    features = [torch.randn(n, 32, generator=generator) for n in (30, 7, 18)]
    n_keep, first = [6, 6, 15], [torch.tensor(4), torch.tensor(0), torch.tensor(17)]
    for pivot in [None, first] if op is max_min_select else [first]:
        picks = together(op, features, n_keep, pivot)
        for i, (x, k) in enumerate(zip(features, n_keep, strict=True)):
            assert picks[i].tolist() == op(x[None], k, None if pivot is None else pivot[i][None])[0].tolist()


def test_k_center_and_max_sum_differ():
    """In the plane, from 0 degrees: both go to 150; then max-sum takes its neighbour, k-center the gap."""
    angles = torch.tensor([0.0, 60.0, 150.0, 140.0]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], 1)
    tokens = VisualTokens(features, encoder_attention=torch.tensor([1.0, 0, 0, 0]))
    # 140: cos 140 + cos 10 = .22; 60: cos 60 + cos 90 = .5
    assert ToDRE(objective="max-sum").select(tokens, 3).indices.tolist() == [0, 2, 3]
    assert ToDRE(objective="k-center").select(tokens, 3).indices.tolist() == [0, 1, 2]


def test_todre_pivots():
    attention = torch.zeros(16 + 24)
    attention[20], attention[7] = 9.0, 5.0
    tokens = VisualTokens(torch.randn(40, 4), grids=((1, 4, 4), (1, 4, 6)), encoder_attention=attention)
    assert ToDRE()._pivot(tokens) == 7  # the thumbnail's
    assert ToDRE()._pivot(VisualTokens(torch.randn(40, 4), grids=((1, 4, 10),), encoder_attention=attention)) == 20
    without = VisualTokens(torch.tensor([[1.0, 0], [1.1, 0], [9.0, 0], [1.0, 0.1]]))
    assert ToDRE(pivot_without_cls="farthest")._pivot(without) == 2
    assert {int(ToDRE(seed=s)._pivot(without)) for s in range(40)} == {0, 1, 2, 3}
    for bad in ({"objective": "x"}, {"pivot_without_cls": "x"}, {"depths": (0.5, 1.0)}):
        with pytest.raises(ValueError, match=r"accepted|shares of the layers"):
            ToDRE(**bad)


# ---------------------------------------------------------------- TokenFLEX


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


# ---------------------------------------------------------------- Recoverable Compression


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
