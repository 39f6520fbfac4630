"""The OpenAI-compatible server: counts in `usage`, budgets of requests, and what must not take it down."""

import asyncio
import base64
import io
import os
import socket
import subprocess
import sys
import time

import httpx
import pytest
from PIL import Image

from tokenprune.budget import Budget
from tokenprune.eval import minivlm
from tokenprune.eval.answers import held_out
from tokenprune.serve.settings import KEEP, POLICY

from .support import NEW_TOKENS, answers, loaded

MODEL = str(minivlm.WEIGHTS["llava"])
START_UP = 240


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Base URL of a server that keeps a quarter."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {**os.environ, POLICY: "divprune", KEEP: "0.25", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL,
        "--host", "127.0.0.1", "--port", str(port),
        "--enforce-eager", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "8",
        "--limit-mm-per-prompt", '{"image": 2}', "--trust-request-mm-kwargs",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
        url = f"http://127.0.0.1:{port}"
        deadline = time.time() + START_UP
        while True:
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.time() < deadline, log.read_text()[-3000:]
            time.sleep(1)
        yield url
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _picture(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _body(text, pictures, **more):
    content = [{"type": "image_url", "image_url": {"url": each}} for each in pictures]
    content.append({"type": "text", "text": text})
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": NEW_TOKENS,
        "add_special_tokens": True,  # as the Hugging Face processor does
        **more,
    }


def _of(sample, **more):
    return _body(sample.question.text, [_picture(scene.image) for scene in sample.scenes], **more)


def _ask(server, body):
    return httpx.post(f"{server}/v1/chat/completions", json=body, timeout=120)


def _text(name, tokens):
    return loaded(name)[1].tokenizer.decode(tokens, skip_special_tokens=True)


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
            asked = [client.post(f"{server}/v1/chat/completions", json=_of(sample, **more)) for sample in samples]
            return await asyncio.gather(*asked)

    replies = [reply.json() for reply in asyncio.run(ask_all())]
    budget = 0.25 if keep is None else keep
    expected = answers("llava", samples, "divprune", budget)
    assert [r["choices"][0]["message"]["content"].strip() for r in replies] == [_text("llava", e) for e in expected]
    tokenizer, n = loaded("llava")[1].tokenizer, Budget(budget).count(144)
    for reply, sample in zip(replies, samples, strict=True):
        assert reply["usage"]["prompt_tokens"] == _words(tokenizer, sample, n)


def _still_serves(server):
    sample = held_out(1)[0]
    reply = _ask(server, _of(sample)).json()
    expected = _text("llava", answers("llava", [sample], "divprune", 0.25)[0])
    assert reply["choices"][0]["message"]["content"].strip() == expected


@pytest.mark.parametrize(
    "body",
    [
        _body("what colour is the circle ?", ["data:image/png;base64,bm8gcGljdHVyZQ=="]),
        _body("what colour is the circle ?", ["data:image/png;base64,&&&"]),
        _body("circle " * 600, []),
        _body("a", [_picture(held_out(1)[0].scene.image)] * 3),  # more pictures than the server takes
        _body("a", [_picture(held_out(1)[0].scene.image)], mm_processor_kwargs={"keep": 0}),
        _body("a", [_picture(held_out(1)[0].scene.image)], mm_processor_kwargs={"keep": "all"}),
        _body("a", [_picture(held_out(1)[0].scene.image)] * 2, mm_processor_kwargs={"keep": 1e9}),
    ],
    ids=["no picture", "no base64", "over-long", "too many", "keep 0", "keep all", "keep 1e9"],
)
def test_a_bad_request_is_refused_and_the_server_goes_on(server, body):
    reply = _ask(server, body)
    assert 400 <= reply.status_code < 500, reply.text
    if "mm_processor_kwargs" in body:
        assert "accepted: a float in (0, 1]" in reply.text
    _still_serves(server)


def test_a_client_that_leaves(server):
    sample = held_out(1)[0]
    body = _of(sample, stream=True, ignore_eos=True) | {"max_tokens": 400}
    for _ in range(4):
        with httpx.stream("POST", f"{server}/v1/chat/completions", json=body, timeout=120) as reply:
            assert reply.status_code == 200
            next(reply.iter_lines())  # the first token is there, and the client goes
    with pytest.raises(httpx.TimeoutException):  # or goes before there is any
        httpx.post(f"{server}/v1/chat/completions", json=body | {"stream": False}, timeout=0.2)
    _still_serves(server)
    for _ in range(60):
        text = httpx.get(f"{server}/metrics", timeout=30).text
        running = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running")]
        if running and all(line.endswith(" 0.0") for line in running):
            return
        time.sleep(0.5)
    raise AssertionError("requests whose client left are still running")
