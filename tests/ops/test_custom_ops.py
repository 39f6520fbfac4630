"""What the ops promise beside results: errors, custom ops, whole graphs, few launches."""

import pytest
import torch

from tokenprune.ops import (
    TokenCover,
    attention_received,
    coverage_select,
    dpp_select,
    implementation,
    max_min_select,
    max_sum_select,
    token_coverage_select,
    topk_gather,
)

from .cases import gpu


def test_bad_arguments_are_named():
    x = torch.randn(2, 5, 3)
    with pytest.raises(ValueError, match=r"k=6 must be between 1 and N=5"):
        max_min_select(x, 6)
    with pytest.raises(ValueError, match=r"features must be \(B, N, D\)"):
        max_min_select(x[0], 2)
    with pytest.raises(ValueError, match="length=2 must be"):
        max_min_select(x, 2, length=2)
    with pytest.raises(ValueError, match="first must be"):
        max_sum_select(x, 2, torch.tensor([1]))
    with pytest.raises(ValueError, match="mask must be"):
        max_sum_select(x, 2, torch.tensor([1, 1]), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"quality \(B, N\)"):
        dpp_select(x, torch.ones(2, 4), 2)
    with pytest.raises(ValueError, match="quality must be"):
        coverage_select(x.mT, 2, torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"similarity must be \(B, R, N\)"):
        coverage_select(x[0], 2)
    with pytest.raises(ValueError, match=r"features must be \(B, N, D\)"):
        token_coverage_select(x[0], 2)
    with pytest.raises(ValueError, match=r"weight must be"):
        token_coverage_select(x, 2, weight=torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"others must be \(B, W, N\) with B = 2 and N = 5"):
        token_coverage_select(x, 2, others=torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match=r"shift=1 must be in \[0, 1\)"):
        token_coverage_select(x, 2, cover=TokenCover(1))
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        token_coverage_select(x, 2, cover=TokenCover(temperature=0))
    with pytest.raises(ValueError, match=r"k=0 must be"):
        topk_gather(x[..., 0], x, 0)
    with pytest.raises(ValueError, match=r"scores must be \(B, N\)"):
        topk_gather(x[..., 0], x[:, :4], 1)
    with pytest.raises(ValueError, match="positions must end in"):
        topk_gather(x[..., 0], x, 1, positions=torch.zeros(3, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="H a multiple of H_kv"):
        attention_received(torch.randn(1, 3, 4, 8), torch.randn(1, 2, 4, 8))
    with pytest.raises(ValueError, match="'reference', 'host', 'triton'"), implementation("fast"):
        pass


def calls(k=3):
    x, scores = torch.randn(2, 7, 5), torch.randn(2, 7)
    first, mask = torch.tensor([1, 0]), torch.ones(2, 7, dtype=torch.bool)
    query = torch.randn(2, 4, 6, 8)
    ops = torch.ops.tokenprune
    return [
        (ops.max_min_select.default, (x, k, None, None, 0.0)),
        (ops.max_min_select.default, (x, k, first[:, None], mask, 0.75)),
        (ops.max_sum_select.default, (x, k, first[:, None], None)),
        (ops.dpp_select.default, (x, scores.sigmoid(), k, mask)),
        (ops.coverage_select.default, (x.mT.contiguous(), k, scores.sigmoid(), None)),
        (ops.token_coverage_select.default, (x, k, scores.sigmoid(), None, [0.5, 0.2], scores[:, None])),
        (ops.topk_gather.default, (scores, x, k, None, None)),
        (
            ops.topk_gather.default,
            (scores, x.clone().requires_grad_(), k, mask, torch.arange(7).expand(3, 2, 7).contiguous()),
        ),
        (ops.attention_received.default, (query, query[:, :2], None, mask[:, :6], 0.3)),
    ]


@pytest.mark.parametrize(("op", "args"), calls())
def test_custom_ops_are_well_formed(op, args):
    torch.library.opcheck(op, args)


def test_compile_keeps_its_graph_whole_around_the_ops():
    def layer(x, scores, first):
        x = x * 2
        diverse = torch.cat([max_min_select(x, 3), max_sum_select(x, 3, first), dpp_select(x, scores, 3)], 1)
        diverse = torch.cat([diverse, coverage_select(x.mT, 3), token_coverage_select(x, 3)], 1)
        indices, gathered = topk_gather(scores + 1, x, 2)
        heads = x[:, None].expand(-1, 4, -1, -1)
        received = attention_received(heads, heads[:, :2])
        return diverse + 1, indices, gathered.relu(), received.sum()

    x, scores, first = torch.randn(2, 9, 6), torch.randn(2, 9), torch.tensor([4, 2])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(x, scores, first), layer(x, scores, first), strict=True):
        torch.testing.assert_close(got, want)


@gpu
def test_three_launches_and_a_cuda_graph():
    x = torch.randn(2, 600, 256, device="cuda", dtype=torch.bfloat16)
    first, scores = torch.tensor([3, 4], device="cuda"), torch.randn(2, 600, device="cuda")

    def run():
        return (
            max_min_select(x, 60),
            max_min_select(x, 60, first),
            max_sum_select(x, 60, first),
            dpp_select(x, scores.sigmoid(), 60),
            coverage_select(x.float() @ x.float().mT, 60),
            token_coverage_select(x, 60),
            *topk_gather(scores, x, 60),
            attention_received(x[:, None], x[:, None]),
        )

    expected = run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        max_min_select(x, 60)
        torch.cuda.synchronize()
    assert 1 <= sum(event.count for event in profile.key_averages() if event.device_time_total > 0) <= 3
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # raises at any wait for the device
        captured = run()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True))
