"""The server under load: nothing is lost and nothing is left behind."""

import asyncio
import os
import random

import httpx
import psutil
import pytest

from tokenprune.eval.answers import held_out

from .serving import of, running, text_of, wait_until_idle
from .support import answers

BUDGETS = (None, 0.1, 0.25, 1.0, 9)
FULL = bool(os.environ.get("FULL"))
REQUESTS = 2000
#: The least that a request which is not let go of would hold: its picture's pixels in float32.
BYTES_OF_A_REQUEST = 3 * 96 * 96 * 4


async def _ask_all(server, bodies, at_once, leaving=()):
    """Contents of the answers; None of those whose client left."""
    gate = asyncio.Semaphore(at_once)

    async def one(client, i, body):
        async with gate:
            if i in leaving:
                try:
                    await client.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.05)
                except httpx.TimeoutException:
                    return None
            reply = await client.post(f"{server.url}/v1/chat/completions", json=body)
            assert reply.status_code == 200, reply.text
            return reply.json()["choices"][0]["message"]["content"].strip()

    # Of a connection that waits to be used again, the server and the client may disagree whether it is still open.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        return await asyncio.gather(*(one(client, i, body) for i, body in enumerate(bodies)))


def _bodies(samples, budgets):
    return [
        of(sample, **({} if keep is None else {"mm_processor_kwargs": {"keep": keep}}))
        for sample, keep in zip(samples, budgets, strict=True)
    ]


def _memory(server):
    """Bytes of all processes of the server."""
    process = psutil.Process(server.process)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


def test_mixed_budgets_at_once_with_clients_that_leave(server):
    drawn = held_out(12)
    samples, budgets = drawn * len(BUDGETS), [keep for keep in BUDGETS for _ in drawn]
    expected = {
        keep: [text_of("llava", each) for each in answers("llava", drawn, "divprune", 0.25 if keep is None else keep)]
        for keep in BUDGETS
    }
    order = random.Random(0).sample(range(len(samples)), len(samples))
    leaving = set(range(0, len(order), 7))
    bodies = _bodies([samples[i] for i in order], [budgets[i] for i in order])
    found = asyncio.run(_ask_all(server, bodies, 64, leaving))
    for place, (i, answer) in enumerate(zip(order, found, strict=True)):
        if answer is None:
            assert place in leaving
        else:
            assert answer == expected[budgets[i]][i % len(drawn)]
    wait_until_idle(server)


@pytest.mark.skipif(not FULL, reason="FULL=1: minutes")
def test_two_thousand_requests_leave_nothing_behind(tmp_path):
    """Every request has another picture. Caches are small, so that they are full after the first few hundred: pictures,
    blocks of the KV cache, whose memory is taken when they are first used, and kernels by the shapes of matrices."""
    samples = held_out(REQUESTS)
    budgets = [random.Random(i).choice(BUDGETS) for i in range(len(samples))]
    taken = []
    caches = ("--num-gpu-blocks-override", "64", "--mm-processor-cache-gb", "0.01")
    with running(tmp_path / "log", *caches, ONEDNN_PRIMITIVE_CACHE_CAPACITY="16") as server:
        for start in range(0, len(samples), REQUESTS // 8):
            stop = start + REQUESTS // 8
            found = asyncio.run(_ask_all(server, _bodies(samples[start:stop], budgets[start:stop]), 200))
            assert len(found) == len(samples[start:stop]) and all(answer is not None for answer in found)
            wait_until_idle(server)
            taken.append(_memory(server))
    assert taken[-1] - taken[3] < REQUESTS / 2 * BYTES_OF_A_REQUEST / 2, taken
