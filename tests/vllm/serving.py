"""The OpenAI-compatible server, and requests to it."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from PIL import Image

from tokenprune.eval import minivlm
from tokenprune.serve.settings import KEEP, POLICY

from .support import NEW_TOKENS, loaded

MODEL = str(minivlm.WEIGHTS["llava"])
START_UP = 600  # seconds


class Server(NamedTuple):
    url: str
    process: int


@contextmanager
def running(log: Path, *arguments: str, **variables: str) -> Iterator[Server]:
    """A server that keeps a quarter.

    Args:
        log: where its output goes.
        arguments: further ones of its command line.
        variables: further ones of its environment.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ours = {POLICY: "divprune", KEEP: "0.25", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    environment = {**os.environ, **ours, **variables}
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL,
        "--host", "127.0.0.1", "--port", str(port),
        "--enforce-eager", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "8",
        "--limit-mm-per-prompt", '{"image": 2}', "--trust-request-mm-kwargs", *arguments,
    ]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield Server(_url_of(process, port, log), process.pid)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _url_of(process: subprocess.Popen[bytes], port: int, log: Path) -> str:
    """Wait until a server answers."""
    url = f"http://127.0.0.1:{port}"
    deadline = time.time() + START_UP
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return url
        except httpx.HTTPError:
            pass
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.time() < deadline, log.read_text()[-3000:]
        time.sleep(1)


def picture(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def body(text, pictures, **more):
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


def of(sample, **more):
    return body(sample.question.text, [picture(scene.image) for scene in sample.scenes], **more)


def ask(server, body):
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)


def text_of(name, tokens):
    return loaded(name)[1].tokenizer.decode(tokens, skip_special_tokens=True)


def running_requests(server):
    """How many requests the engine has, by its metrics, waiting or not."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    lines = httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


def wait_until_idle(server, seconds=30):
    deadline = time.time() + seconds
    while running_requests(server):
        assert time.time() < deadline, "requests are still running"
        time.sleep(0.5)
