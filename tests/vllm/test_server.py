"""The OpenAI-compatible server: counts in `usage`, budgets of requests, and what must not take it down."""

import asyncio
import base64
import io
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tokenprune.budget import Budget
from tokenprune.eval.answers import held_out

from .serving import ask, body, of, picture, text_of, wait_until_idle
from .support import answers, loaded

ROOT = Path(__file__).parents[2]


def _bomb():
    """A picture of more than 900 million pixels in a few kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (30_500, 30_500)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _words(tokenizer, sample, n):
    """Prompt length with `n` visual tokens."""
    from tokenprune.eval.minivlm import prompt

    text = loaded("llava")[1].apply_chat_template(prompt(sample.question.text), add_generation_prompt=True)
    return len(tokenizer(text)["input_ids"]) - 1 + n


@pytest.mark.parametrize("keep", [None, 0.1, 1.0])
def test_concurrent_answers_and_usage(server, keep):
    samples = held_out(12)
    more = {} if keep is None else {"mm_processor_kwargs": {"keep": keep}}

    async def ask_all():
        async with httpx.AsyncClient(timeout=120) as client:
            asked = [client.post(f"{server.url}/v1/chat/completions", json=of(sample, **more)) for sample in samples]
            return await asyncio.gather(*asked)

    replies = [reply.json() for reply in asyncio.run(ask_all())]
    budget = 0.25 if keep is None else keep
    expected = answers("llava", samples, "divprune", budget)
    assert [r["choices"][0]["message"]["content"].strip() for r in replies] == [text_of("llava", e) for e in expected]
    tokenizer, n = loaded("llava")[1].tokenizer, Budget(budget).count(144)
    for reply, sample in zip(replies, samples, strict=True):
        assert reply["usage"]["prompt_tokens"] == _words(tokenizer, sample, n)


def _still_serves(server):
    sample = held_out(1)[0]
    reply = ask(server, of(sample)).json()
    expected = text_of("llava", answers("llava", [sample], "divprune", 0.25)[0])
    assert reply["choices"][0]["message"]["content"].strip() == expected


PICTURE = picture(held_out(1)[0].scene.image)
BAD = {
    "no picture": body("what colour is the circle ?", ["data:image/png;base64,bm8gcGljdHVyZQ=="]),
    "no base64": body("what colour is the circle ?", ["data:image/png;base64,&&&"]),
    "truncated": body("what colour is the circle ?", [PICTURE[: -len(PICTURE) // 8 * 4]]),
    "over-long": body("circle " * 600, []),
    "too many": body("a", [PICTURE] * 3),  # more pictures than the server takes
}
BAD_BUDGETS = {
    "keep 0": 0,
    "keep -1": -1,
    "keep 1.5": 1.5,
    "keep 1e9": 1e9,
    "keep all": "all",
    "a list": [1],
    "yes": True,
}
BAD |= {name: body("a", [PICTURE], mm_processor_kwargs={"keep": keep}) for name, keep in BAD_BUDGETS.items()}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_and_the_server_goes_on(server, name):
    reply = ask(server, BAD[name])
    assert 400 <= reply.status_code < 500, reply.text
    error = reply.json()["error"]  # as OpenAI's server says it
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["message"] and error["code"] == reply.status_code
    if name in BAD_BUDGETS:
        assert "accepted: a float in (0, 1]" in error["message"]
    _still_serves(server)


def test_a_huge_picture(server):
    """vLLM itself answers 500 for it, and goes on."""
    reply = ask(server, body("what colour is the circle ?", [_bomb()]))
    assert reply.status_code >= 400
    assert "pixels" in reply.json()["error"]["message"]
    _still_serves(server)


def test_a_client_that_leaves(server):
    sample = held_out(1)[0]
    long = of(sample, stream=True, ignore_eos=True) | {"max_tokens": 400}
    for _ in range(4):
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=long, timeout=120) as reply:
            assert reply.status_code == 200
            next(reply.iter_lines())  # the first token is there, and the client goes
    with pytest.raises(httpx.TimeoutException):  # or goes before there is any
        httpx.post(f"{server.url}/v1/chat/completions", json=long | {"stream": False}, timeout=0.2)
    _still_serves(server)
    wait_until_idle(server)


def test_the_example_asks_it(server, tmp_path):
    """`examples/serve/ask.py`, with OpenAI's client, streaming."""
    sample = held_out(1)[0]
    Image.fromarray(sample.scene.image).save(tmp_path / "picture.png")
    command = [sys.executable, ROOT / "examples" / "serve" / "ask.py", tmp_path / "picture.png", sample.question.text]
    out = subprocess.run(
        [*command, "--url", f"{server.url}/v1", "--keep", "1.0", "9"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    full, pruned = (int(line.split()[0]) for line in out[1::2])
    assert full - pruned == 144 - 9
    assert [line.partition(":")[0] for line in out[::2]] == ["keep=1.0", "keep=9"]
    refused = subprocess.run([*command, "--url", f"{server.url}/v1", "--keep", "7.5"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "the server refused keep=7.5" in refused.stderr
