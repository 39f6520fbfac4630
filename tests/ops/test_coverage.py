"""`coverage_select`."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.ops import TokenCover, coverage_select, implementation, token_coverage_select
from tokenprune.ops.host import coverage as host_coverage
from tokenprune.ops.host import covering, excess, products, targets

from .cases import CASES, DEVICE, FAST, answers, batches, check_picks, on_cases


@on_cases(500, batches(), st.data())
def test_coverage_is_the_references_to_the_bit(name, case, data):
    """Similarities in sixteenths and qualities that are powers of two: gains are exact in any order of summing."""
    x, _, mask, k = case
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    shape = (len(x), data.draw(st.integers(1, 30)), x.shape[1])
    similarity = (torch.randint(-8, 17, shape, generator=generator) / 16).to(x.device, x.dtype)
    if data.draw(st.booleans()):
        similarity[:] = similarity[:, :, :1]  # every candidate alike
    quality = None
    if data.draw(st.booleans()):
        quality = 2.0 ** torch.randint(-2, 3, x.shape[:2], generator=generator).to(x.device)
    with pytest.MonkeyPatch.context() as patch:
        if name == "triton":  # as with many tokens, whose gains are all computed again between launches
            patch.setattr("tokenprune.ops.kernels.coverage._FEW", data.draw(st.sampled_from([0, 0, 256])))
        check_picks(name, coverage_select, similarity, k, quality, mask)


@pytest.mark.skipif("triton" not in FAST, reason="needs triton")
def test_picks_of_a_launch_grow_by_a_quarter():
    from tokenprune.ops.kernels.coverage import launches

    assert launches(256, 100) == [0, 100]
    assert launches(257, 1) == [0, 1]
    assert launches(300, 20) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 20]
    assert len(launches(2880, 288)) == 26


@pytest.mark.parametrize("name", ["reference", *FAST])
def test_coverage_by_hand(name):
    """Three targets: token 0 covers all a little, 1 and 2 cover one each entirely, 3 repeats 1."""
    similarity = torch.tensor([[[0.5, 1.0, 0.0, 1.0], [0.5, 0.0, 0.75, 0.0], [0.5, 0.0, 0.0, 0.0]]])
    similarity = similarity.to(DEVICE)
    with implementation(name):
        # gains 1.5, 1, .75, 1; then .5, .25, .5: the tie goes to token 1; then .25 and 0
        assert coverage_select(similarity, 4)[0].tolist() == [0, 1, 2, 3]
        # token 3 is wanted thrice as much: 3; then 1 (0 adds .5 + .5), 0.75 and 0
        assert coverage_select(similarity, 4, similarity.new_tensor([[1.0, 1, 1, 3]]))[0].tolist() == [3, 0, 2, 1]


def few_held(monkeypatch):
    """No matrix fits, blocks are small, and few rows are kept."""
    monkeypatch.setattr(host_coverage, "MATRIX_BYTES", 0)
    monkeypatch.setattr(covering, "_ROW_BYTES", 0)
    monkeypatch.setattr(covering, "_AGAIN", (1, 3))
    monkeypatch.setattr(covering, "_AHEAD", 2)
    monkeypatch.setattr(targets, "SIDE", 5)
    monkeypatch.setattr(excess, "LIST_BYTES", 5 * 150 * 40)
    monkeypatch.setattr(excess, "_CHUNK", 50)
    monkeypatch.setattr(products, "TILE", 12)


@pytest.mark.parametrize("in_blocks", [False, True])
def test_covering_tokens_is_the_references_to_the_bit(in_blocks):
    """Cosines, qualities and weights are exact in any order of summing, with a shift of a half too."""
    with pytest.MonkeyPatch.context() as patch:
        if in_blocks:
            few_held(patch)
            if "triton" in FAST:
                patch.setattr("tokenprune.ops.kernels.coverage.WORKSPACE", 0)

        @on_cases(100, batches(), st.data())
        def on_one(name, case, data):
            x, _, _, k = case
            generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
            powers = lambda: 2.0 ** torch.randint(-2, 3, x.shape[:2], generator=generator).to(x.device)
            quality, weight = (powers() if data.draw(st.booleans()) else None for _ in range(2))
            shape = (len(x), data.draw(st.integers(1, 6)), x.shape[1])
            others = torch.randint(-8, 17, shape, generator=generator) / 16
            others = others.to(x.device) if data.draw(st.booleans()) else None
            shift = data.draw(st.sampled_from([0.0, 0.5]))
            expected, picks = answers(name, token_coverage_select, x, k, quality, weight, TokenCover(shift), others)
            assert torch.equal(picks, expected)

        for name in FAST:
            on_one(name)


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("kind", ["random", "groups", "repeated", "some zero"])
def test_covering_tokens_of_any_numbers(kind, in_blocks, monkeypatch):
    """With all that SCOPE, EADP and MMTok ask for."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(1, 150, 20, generator=generator)
    if kind == "groups":
        x = x[:, torch.randint(12, (150,), generator=generator)] + 0.4 * x
    elif kind == "repeated":
        x = x[:, torch.randint(50, (150,), generator=generator)]
    elif kind == "some zero":
        x[torch.rand(1, 150, generator=generator) < 0.2] = 0
    quality, others = torch.rand(1, 150, generator=generator), torch.rand(1, 4, 150, generator=generator)
    if in_blocks:
        few_held(monkeypatch)
    for more in (
        {"quality": quality},
        {"weight": quality, "cover": TokenCover(0.5)},
        {"cover": TokenCover(temperature=0.2), "weight": 0.5 + quality, "others": 0.1 * others},
    ):
        with implementation("reference"):
            expected = token_coverage_select(x, 30, **more)
        picks = token_coverage_select(x, 30, **more)
        if kind == "repeated":  # the reference sums equal tokens' gains in different orders
            assert torch.equal(x[0, picks[0]], x[0, expected[0]]) and picks.sum() <= expected.sum()
        else:
            assert torch.equal(picks, expected), more


@given(batches(), st.data())
@settings(CASES, max_examples=60)
def test_gains_are_upper_bounds_and_exact_once_counted(case, data):
    """Whatever is picked and whenever changes are counted: with lists of all lengths, weights, words and a softmax."""
    x, _, _, k = case
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    n = x.shape[1]
    weight = torch.rand(n, generator=generator).round(decimals=1) if data.draw(st.booleans()) else None
    others = torch.rand(3, n, generator=generator) if data.draw(st.booleans()) else None
    form = data.draw(st.sampled_from([(0.0, None), (0.5, None), (0.2, 0.3)]))
    shown = targets.TokenTargets(products.unit_vectors(x[0].cpu()), weight, *form, others)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "SIDE", 5)
        patch.setattr(excess, "_CHUNK", 7)
        patch.setattr(excess, "LIST_BYTES", 5 * n * data.draw(st.integers(0, n)))
        first = shown.prepare()
        matrix = covers(shown)
        assert (first * (1 + 1e-4) >= matrix.clamp(min=0).sum(1)).all()
        gains, covered = excess.Gains(shown), torch.zeros(matrix.shape[1])
        for token in torch.randperm(n, generator=generator)[:k].tolist():
            gains.pick(matrix[token].numpy())
            covered = torch.maximum(covered, matrix[token])
            if data.draw(st.booleans()):
                gains.catch_up()
            left = (matrix - covered).clamp(min=0).double().sum(1).numpy()
            assert (gains.gain >= left - 1e-12 * n).all()
            if gains.behind == 0:
                assert abs(gains.gain - left).max() <= 1e-12 * n


def covers(shown):
    """(N, N + W), all rows that `TokenTargets` computes."""
    rows = torch.empty(len(shown.unit), shown.count)
    shown.rows(torch.arange(len(shown.unit)).numpy(), rows)
    return rows


def test_once_all_is_covered_the_first_tokens_left_are_picked(monkeypatch):
    """20 different tokens, each five times, and 30 picks."""
    few_held(monkeypatch)
    x = torch.eye(20).repeat(5, 1)[None]
    assert token_coverage_select(x, 30)[0].tolist() == list(range(30))


def test_zero_vectors_cover_all_alike_at_a_low_temperature(monkeypatch):
    """The softmax of a zero vector is even, where the exponentials of all others would be 0."""
    x = torch.eye(8)[None] * (torch.arange(8) < 6)[:, None]
    for _ in range(2):
        assert token_coverage_select(x, 7, cover=TokenCover(temperature=0.001))[0].tolist() == [0, 1, 2, 3, 4, 5, 6]
        few_held(monkeypatch)


def test_nan_ends(monkeypatch):
    few_held(monkeypatch)
    x = torch.randn(1, 40, 8)
    x[0, 20, 3] = torch.nan
    assert token_coverage_select(x, 12)[0].unique().numel() == 12


def test_covering_tokens_is_coverage_select_of_that_matrix():
    x, weight = torch.randn(2, 12, 6), torch.rand(2, 12)
    unit = x / x.norm(dim=-1, keepdim=True)
    matrix = (unit @ unit.mT / 0.3).softmax(-1) * weight[..., None]
    expected = coverage_select(matrix, 5)
    assert torch.equal(token_coverage_select(x, 5, weight=weight, cover=TokenCover(temperature=0.3)), expected)


def test_a_symmetric_matrix_is_not_copied():
    x = torch.randn(30, 30)
    symmetric = x + x.T
    assert host_coverage._by_candidate(symmetric).data_ptr() == symmetric.data_ptr()
    assert host_coverage._by_candidate(x.T).data_ptr() == x.data_ptr()
    assert torch.equal(host_coverage._by_candidate(x), x.T)


PEAK = """
import resource, torch
from tokenprune.ops import token_coverage_select
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
torch.set_num_threads(1)
x = torch.randn(1, 14_000, 64)
token_coverage_select(x[:, :64], 8)
before = peak()
token_coverage_select(x, 40, torch.rand(1, 14_000) ** 8)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, for the peak of resident memory")
def test_memory_of_covering_tokens_stays_bounded():
    """N x N would take 784 MB."""
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 650
