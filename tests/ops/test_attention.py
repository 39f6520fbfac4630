"""`attention_received`."""

import torch
from hypothesis import strategies as st

from tokenprune.ops import attention_received

from .cases import DEVICE, DTYPES, answers, on_cases


def test_attention_received_by_definition():
    q, k = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 9, 8)
    full = (q @ k.repeat_interleave(2, 1).mT / 8**0.5).softmax(-1).mean(1)
    torch.testing.assert_close(attention_received(q, k), full.mean(1))
    torch.testing.assert_close(attention_received(q, k, rows=torch.tensor([6])), full[:, 6])
    asked = torch.tensor([[1, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    some = attention_received(q, k, rows=asked)
    torch.testing.assert_close(some[0], full[0, [0, 3]].mean(0))
    assert (some[1] == 0).all()
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :4] = False
    masked = attention_received(q, k, mask=mask)
    assert (masked[0, :4] == 0).all()
    torch.testing.assert_close(masked[1], full[1].mean(0))
    torch.testing.assert_close(attention_received(q.bfloat16(), k.bfloat16()), full.mean(1), rtol=0, atol=2e-2)
    assert attention_received(q.bfloat16(), k.bfloat16()).dtype == torch.float32


@on_cases(300, st.data())
def test_attention_received_is_the_references(name, data):
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
    expected, answer = answers(name, attention_received, query, key, rows, mask)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, expected, atol=2e-6, rtol=1e-5)


def test_memory_of_scoring_does_not_grow_with_the_square():
    """Peak of allocated bytes at two sizes, as the profiler counts them."""

    def peak(n):
        q, k = torch.randn(1, 2, n, 8), torch.randn(1, 2, n, 8)
        with torch.profiler.profile(profile_memory=True) as profile:
            attention_received(q, k)
        live = most = 0
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda e: e.start_ns()):
            live += event.nbytes()
            most = max(most, live)
        return most

    small, large = peak(3000), peak(12000)
    assert small > 1e6  # the profiler saw the tiles
    assert large < 2 * small  # a map would grow sixteenfold
