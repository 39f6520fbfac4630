"""`dpp_select`."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.ops import dpp_select, implementation, max_min_select, max_sum_select
from tokenprune.ops.host import products

from .cases import CASES, DEVICE, FAST, answers, batches, check_picks, needs_triton, on_cases


@on_cases(500, batches(), st.data())
def test_dpp_is_the_references(name, case, data):
    """Quality from a continuum: no two variances are so near that rounding could decide."""
    x, _, mask, k = case
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    quality = (0.2 + torch.rand(x.shape[:2], generator=generator)).to(x.device)
    # Exact cosines make true ties of what is left after some picks; noise breaks them.
    x = x + 0.3 * torch.randn(x.shape, generator=generator).to(x) * x.float().norm(dim=-1, keepdim=True).to(x)
    check_picks(name, lambda x, k, quality, mask: dpp_select(x, quality, k, mask), x, k, quality, mask)


def test_dpp_maximises_the_determinant_step_by_step():
    x, quality = torch.randn(24, 40, generator=torch.Generator().manual_seed(5)), torch.linspace(1, 0.3, 24)
    unit = F.normalize(x.double(), dim=-1) * quality[:, None].double()
    kernel, picks = unit @ unit.T, []
    while len(picks) < 12:
        volume = [
            -1.0 if i in picks else float(torch.linalg.det(kernel[picks + [i]][:, picks + [i]])) for i in range(24)
        ]
        picks.append(int(torch.tensor(volume).argmax()))
    for name in ["reference", *FAST]:
        with implementation(name):
            assert dpp_select(x[None].to(DEVICE), quality[None].to(DEVICE), 12)[0].tolist() == picks


@pytest.mark.parametrize("name", ["reference", *FAST])
def test_dpp_takes_duplicates_last(name):
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(1)).repeat(3, 1).to(DEVICE)
    with implementation(name):
        picks = dpp_select(x[None], x.new_ones(1, 18), 18)[0].tolist()
    assert sorted(i % 6 for i in picks[:6]) == list(range(6))
    assert picks[6:] == sorted(picks[6:], key=lambda i: i * 2654435769 % 2**32)


@pytest.mark.parametrize("name", ["reference", *FAST])
def test_dpp_beyond_the_rank_is_spread_over_the_picture(name):
    """Of 24 x 24 tokens in a space of 3 dimensions 60 are picked: no part of the picture is left out."""
    x = torch.randn(1, 576, 3, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    with implementation(name):
        picks = dpp_select(x, x.new_ones(1, 576), 60)[0].cpu()
        fewer = dpp_select(x, x.new_ones(1, 576), 30)[0].cpu()
    assert torch.equal(fewer, picks[:30])
    for some, at_most in ((picks, 8), (fewer, 5)):
        assert len(some.unique()) == len(some)
        rows, columns = some[3:] // 24, some[3:] % 24
        for lines in (rows, columns):  # an eighth of the picture would have 7 and 3 of them
            assert lines.div(3, rounding_mode="floor").bincount(minlength=8).min() >= 1
            assert lines.bincount(minlength=24).max() <= at_most
        gaps = torch.cat([torch.tensor([0]), some.sort().values, torch.tensor([576])]).diff()
        assert gaps.max() <= 2.7 * 576 / len(some)


@on_cases(100, batches())
def test_dpp_without_any_variance_is_the_references(name, case):
    """Features in few dimensions with the same quality: all picks but the first few have none left."""
    x, _, mask, k = case
    x = torch.sign(x[..., :2].float() + 0.5) * torch.tensor([1.0, 0]).to(x.device)
    check_picks(name, lambda x, k, quality, mask: dpp_select(x, quality, k, mask), x, k, x.new_ones(x.shape[:2]), mask)


def with_qualities(case, data):
    """Noisy features, of low rank in half of the cases, and qualities: x, quality, mask and k."""
    x, _, mask, k = case
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    quality = (0.2 + torch.rand(x.shape[:2], generator=generator)).to(x.device)
    x = x + 0.3 * torch.randn(x.shape, generator=generator).to(x) * x.float().norm(dim=-1, keepdim=True).to(x)
    return (x[..., :3] if data.draw(st.booleans()) else x), quality, mask, k


@given(batches(), st.data())
@settings(CASES, max_examples=100)
def test_dpp_of_long_inputs_is_the_references(case, data):
    """Without the matrix of all similarities, and beyond the rank."""
    x, quality, mask, k = with_qualities(case, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "GRAM_LIMIT", 0)
        expected, answer = answers("host", dpp_select, x, quality, k, mask)
    assert torch.equal(answer, expected)


@needs_triton
@given(batches(), st.data())
@settings(CASES, max_examples=200)
def test_streamed_dpp_is_the_references(case, data):
    """What the kernels' module does where the similarities of one input take more than the workspace."""
    from tokenprune.ops.kernels import streamed

    x, quality, mask, k = with_qualities(case, data)
    with implementation("reference"):
        expected = dpp_select(x, quality, k, mask)
    assert torch.equal(streamed.dpp_select(x, quality, k, mask), expected)


@needs_triton
def test_kernels_stream_what_is_too_large(monkeypatch):
    """With a workspace of nothing, no kernel is launched."""
    from tokenprune.ops.kernels import dpp, greedy

    for module in (greedy, dpp):
        monkeypatch.setattr(module, "WORKSPACE", 0)
        monkeypatch.setattr(module, "cosines", None)
    generator = torch.Generator().manual_seed(0)
    x, first = torch.randn(2, 30, 8, generator=generator), torch.tensor([3, 4])
    quality = torch.rand(2, 30, generator=generator) + 0.5  # with equal ones, rounding would decide on the first pick
    runs = [
        lambda: dpp_select(x, quality, 7),
        lambda: max_min_select(x, 9),
        lambda: max_sum_select(x, 9, first),
    ]
    for run in runs:
        with implementation("reference"):
            expected = run()
        with implementation("triton"):
            assert torch.equal(run(), expected)
