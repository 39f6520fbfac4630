"""Every implementation of every op against the reference, and what the ops promise beside results."""

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenprune.ops import (
    attention_received,
    coverage_select,
    dpp_select,
    implementation,
    max_min_select,
    max_sum_select,
    topk_gather,
    topk_select,
)

FAST = ["host", *(["triton"] if importlib.util.find_spec("triton") else [])]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CASES = settings(max_examples=2000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# Integers whose squares sum to 16: vectors of length 4, all cosines sixteenths, exact in any order of summing.
PATTERNS = [[4], [3, 2, 1, 1, 1], [2, 2, 2, 2], [3] + [1] * 7, [2, 2, 2] + [1] * 4, [2, 2] + [1] * 8, [1] * 16]
PATTERNS = torch.tensor([p + [0] * (16 - len(p)) for p in PATTERNS], dtype=torch.float32)


@st.composite
def batches(draw):
    """Tokens (B, N, D) with exact cosines, a mask or none, a first candidate of each row, and k."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, n, d = draw(st.integers(1, 3)), draw(st.integers(1, 24)), draw(st.integers(16, 24))
    x = torch.zeros(batch, n, d)
    x[..., :16] = PATTERNS[torch.randint(len(PATTERNS), (batch, n), generator=generator)]
    x = x.gather(2, torch.rand(batch, n, d, generator=generator).argsort(2))
    x *= torch.randint(0, 2, (batch, n, d), generator=generator) * 2 - 1
    x *= 2.0 ** torch.randint(-3, 4, (batch, n, 1), generator=generator)
    kind = draw(st.sampled_from(["distinct", "duplicated", "constant", "zero", "some zero"]))
    if kind == "duplicated":
        x = x[:, torch.randint(0, max(1, n // 3), (n,), generator=generator)]
    elif kind == "constant":
        x = x[:, :1].expand_as(x).clone()
    elif kind == "zero":
        x = torch.zeros_like(x)
    elif kind == "some zero":
        x[torch.rand(batch, n, generator=generator) < 0.4] = 0
    mask = None
    if draw(st.booleans()):
        mask = torch.rand(batch, n, generator=generator) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    likes = torch.rand(batch, n, generator=generator)
    first = likes.argmax(1) if mask is None else likes.masked_fill(~mask, -1).argmax(1)
    k = draw(st.sampled_from([1, n, draw(st.integers(1, n))]))
    dtype = draw(st.sampled_from(DTYPES))
    x, first = x.to(DEVICE, dtype), first.to(DEVICE)
    return x, first, None if mask is None else mask.to(DEVICE), k


# A thread starts with a short stack. Deep in pytest's, some depth makes CPython 3.11 map and unmap a
# page of stack at every call, and Triton's interpreter makes very many.
SHORT_STACK = ThreadPoolExecutor(1)


def by_all(op, *args):
    """The reference's answer and the others'."""

    def run(name):
        with implementation(name):
            return op(*args)

    answers = {name: SHORT_STACK.submit(run, name).result() for name in ["reference", *FAST]}
    return answers.pop("reference"), answers


def check_picks(op, x, k, first, mask):
    expected, answers = by_all(op, x, k, first, mask)
    for name, picks in answers.items():
        assert picks.dtype == torch.int64
        assert torch.equal(picks, expected), name
    n = x.shape[2] if op is coverage_select else x.shape[1]
    counts = torch.full((len(x),), n, device=x.device) if mask is None else mask.sum(1)
    for row, count, i in zip(expected.tolist(), counts.tolist(), range(len(x)), strict=True):
        real = row[: min(k, count)]
        assert len(set(real)) == len(real) and -1 not in real and set(row[count:]) <= {-1}
        assert mask is None or all(mask[i, j] for j in real)


@CASES
@given(batches())
def test_max_min_is_the_references_to_the_bit(case):
    x, _, mask, k = case
    check_picks(max_min_select, x, k, None, mask)


@CASES
@given(batches())
def test_max_min_from_a_pivot_is_the_references_to_the_bit(case):
    x, first, mask, k = case
    check_picks(max_min_select, x, k, first, mask)


@CASES
@given(batches())
def test_max_sum_is_the_references_to_the_bit(case):
    x, first, mask, k = case
    check_picks(max_sum_select, x, k, first, mask)


@settings(CASES, max_examples=500)
@given(batches(), st.data())
def test_distances_that_count_lengths_and_several_first_picks(case, data):
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
    expected, answers = by_all(max_min_select, x, k, first, mask, length)
    for name, picks in answers.items():
        assert torch.equal(picks, expected), name


def test_a_distance_that_counts_lengths_by_hand():
    """Lengths 1, 3, 1, 1 with mean 1.5: by direction 2 is farthest from 0, by length 1 is."""
    x = torch.tensor([[[1.0, 0], [3.0, 0], [0.0, 1], [0.8, 0.6]]])
    first = torch.tensor([0])
    assert max_min_select(x, 2, first)[0].tolist() == [0, 2]
    assert max_min_select(x, 2, first, length=1.0)[0].tolist() == [0, 1]
    assert max_min_select(x, 3, torch.tensor([[3, 1]]))[0].tolist() == [3, 1, 2]


@settings(CASES, max_examples=500)
@given(batches(), st.data())
def test_coverage_is_the_references_to_the_bit(case, data):
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
    check_picks(coverage_select, similarity, k, quality, mask)


@settings(CASES, max_examples=500)
@given(batches(), st.data())
def test_dpp_is_the_references(case, data):
    """Quality from a continuum: no two variances are so near that rounding could decide."""
    x, _, mask, k = case
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    quality = (0.2 + torch.rand(x.shape[:2], generator=generator)).to(x.device)
    # Exact cosines make true ties of what is left after some picks; noise breaks them.
    x = x + 0.3 * torch.randn(x.shape, generator=generator).to(x) * x.float().norm(dim=-1, keepdim=True).to(x)
    check_picks(lambda x, k, quality, mask: dpp_select(x, quality, k, mask), x, k, quality, mask)


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
            assert dpp_select(x[None], quality[None], 12)[0].tolist() == picks


@pytest.mark.parametrize("name", ["reference", *FAST])
def test_dpp_takes_duplicates_last(name):
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(1)).repeat(3, 1)
    with implementation(name):
        picks = dpp_select(x[None], torch.ones(1, 18), 18)[0].tolist()
    assert sorted(i % 6 for i in picks[:6]) == list(range(6)) and picks[6:] == sorted(picks[6:])


@pytest.mark.parametrize("name", ["reference", *FAST])
def test_coverage_by_hand(name):
    """Three targets: token 0 covers all a little, 1 and 2 cover one each entirely, 3 repeats 1."""
    similarity = torch.tensor([[[0.5, 1.0, 0.0, 1.0], [0.5, 0.0, 0.75, 0.0], [0.5, 0.0, 0.0, 0.0]]])
    with implementation(name):
        # gains 1.5, 1, .75, 1; then .5, .25, .5: the tie goes to token 1; then .25 and 0
        assert coverage_select(similarity, 4)[0].tolist() == [0, 1, 2, 3]
        # token 3 is wanted thrice as much: 3; then 1 (0 adds .5 + .5), 0.75 and 0
        assert coverage_select(similarity, 4, torch.tensor([[1.0, 1, 1, 3]]))[0].tolist() == [3, 0, 2, 1]


@CASES
@given(batches(), st.sampled_from(["some", "none", "planes"]), st.data())
def test_topk_gather_is_the_references_to_the_bit(case, kind, data):
    x, _, mask, k = case
    batch, n, _ = x.shape
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    levels = torch.tensor([-torch.inf, -1.5, -0.0, 0.0, 1e-30, 2.0, torch.inf, torch.nan])
    scores = levels[torch.randint(len(levels), (batch, n), generator=generator)]
    if data.draw(st.booleans()):
        scores = torch.randn(batch, n, generator=generator)
    scores = scores.to(x.device, data.draw(st.sampled_from(DTYPES)))
    shape = {"some": (batch, n), "planes": (3, batch, n)}.get(kind)
    positions = None if shape is None else torch.randint(0, 10**6, shape, generator=generator).to(x.device)
    expected, answers = by_all(topk_gather, scores, x, k, mask, positions)
    for name, answer in answers.items():
        assert len(answer) == len(expected) == (2 if positions is None else 3)
        for got, want in zip(answer, expected, strict=True):
            assert got.dtype == want.dtype and torch.equal(got, want), name


@settings(CASES, max_examples=300)
@given(st.data())
def test_attention_received_is_the_references(data):
    draw = data.draw
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, groups, share = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    length, n = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    width = draw(st.sampled_from([*range(1, 41), 130, 257]))  # those beyond what a kernel loads at a time, too
    dtype = draw(st.sampled_from(DTYPES))
    query = torch.randn(batch, groups * share, length, width, generator=generator).to(DEVICE, dtype) * 3
    key = torch.randn(batch, groups, n, width, generator=generator).to(DEVICE, dtype)
    rows = {
        "all": None,
        "listed": torch.randperm(length, generator=generator)[: draw(st.integers(0, length))],
        "per row": torch.rand(batch, length, generator=generator) < 0.3,
    }[draw(st.sampled_from(["all", "listed", "per row"]))]
    mask = {
        "none": None,
        "keys": torch.rand(batch, n, generator=generator) < 0.5,
        "pairs": torch.rand(batch, length, n, generator=generator) < 0.5,
    }[draw(st.sampled_from(["none", "keys", "pairs"]))]
    rows, mask = (None if t is None else t.to(DEVICE) for t in (rows, mask))
    expected, answers = by_all(attention_received, query, key, rows, mask)
    for name, answer in answers.items():
        assert answer.dtype == torch.float32
        torch.testing.assert_close(answer, expected, atol=2e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


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


def test_long_inputs_are_the_references_without_an_n_by_n_matrix(monkeypatch):
    from tokenprune.ops import host

    x = torch.randn(1, 300, 32, generator=torch.Generator().manual_seed(1))
    first = torch.tensor([5])
    runs = [
        lambda: max_min_select(x, 60),
        lambda: max_min_select(x, 60, first),
        lambda: max_sum_select(x, 60, first),
        lambda: max_min_select(x, 60, length=0.75),
        lambda: max_min_select(x, 60, first, length=0.75),
    ]
    expected = [run() for run in runs]
    monkeypatch.setattr(host, "_GRAM_LIMIT", 100)
    monkeypatch.setattr(host, "_TILE", 1000)
    monkeypatch.setattr(host, "_gram", None)
    assert all(torch.equal(a, run()) for a, run in zip(expected, runs, strict=True))


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


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory as Linux counts it")
@pytest.mark.parametrize(
    ("n", "start", "limit"),
    [
        (11_520, "pivot", 64),
        (20_000, "seek", 200),  # 80 MB of features; N x N would be 1600
    ],
)
def test_memory_stays_bounded(n, start, limit):
    run = subprocess.run([sys.executable, "-c", PEAK, str(n), start], capture_output=True, text=True, check=True)
    assert float(run.stdout) < limit


def test_topk_select_is_stable():
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0])
    assert topk_select(scores, 3).tolist() == [1, 2, 3]


def test_gradients_flow_through_the_gather():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.4, 0.3, 0.2, 0.1]])
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    features = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    _, gathered = topk_gather(scores, features, 2, mask)
    gathered.sum().backward()
    assert features.grad[..., 0].tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]


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
        diverse = torch.cat([diverse, coverage_select(x.mT, 3)], 1)
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
