"""Random batches with exact similarities, and every implementation of an op against the reference."""

import functools
import importlib.util
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenprune.ops import coverage_select, implementation

from ..support.products import FULL

FAST = ["host", *(["triton"] if importlib.util.find_spec("triton") else [])]
needs_triton = pytest.mark.skipif("triton" not in FAST, reason="needs triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CASES = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
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


#: Cases of each test that kernels get in Triton's interpreter, which takes ten times as long as everything else, and
#: on a GPU, where the reference loops wait for one launch after the other.
FEWER = 100


def on_cases(count: int, *strategies):
    """A test of `(name, *drawn)` on random cases, for each implementation by name.

    All get `count` cases in `make fuzz`. Otherwise kernels, and everything on a GPU, get `FEWER` at most.
    """

    def add(test):
        @pytest.mark.parametrize("name", FAST)
        @functools.wraps(test)
        def run(name):
            few = (name == "triton" or DEVICE == "cuda") and not FULL
            examples = min(count, FEWER) if few else count

            @settings(CASES, max_examples=examples)
            @given(st.tuples(*strategies))
            def on_one(drawn):
                test(name, *drawn)

            on_one()

        del run.__wrapped__  # pytest would read the arguments of the test
        return run

    return add


# A thread starts with a short stack. Deep in pytest's, some depth makes CPython 3.11 map and unmap a
# page of stack at every call, and Triton's interpreter makes very many.
SHORT_STACK = ThreadPoolExecutor(1)


def answers(name, op, *args):
    """What the reference and the implementation of a name answer."""

    def run(name):
        with implementation(name):
            return op(*args)

    return tuple(SHORT_STACK.submit(run, each).result() for each in ("reference", name))


def check_picks(name, op, x, k, first, mask):
    expected, picks = answers(name, op, x, k, first, mask)
    assert picks.dtype == torch.int64
    assert torch.equal(picks, expected)
    n = x.shape[2] if op is coverage_select else x.shape[1]
    counts = torch.full((len(x),), n, device=x.device) if mask is None else mask.sum(1)
    for row, count, i in zip(expected.tolist(), counts.tolist(), range(len(x)), strict=True):
        real = row[: min(k, count)]
        assert len(set(real)) == len(real) and -1 not in real and set(row[count:]) <= {-1}
        assert mask is None or all(mask[i, j] for j in real)
