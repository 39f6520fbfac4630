"""Tests of the vLLM plugin against the real engine on the CPU, offline: `make test-vllm`."""

import gc
import importlib.util
import os
from types import SimpleNamespace

import pytest

from tokenprune.eval import minivlm
from tokenprune.serve import register

from .checkpoints import BUILD
from .support import HERE, Engine

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
os.environ |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

#: Model Runner V2, which the engine takes on a GPU, has kernels in Triton. In Triton's interpreter they run on a CPU.
V2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"
if V2:
    from triton.backends import backends

    os.environ["TRITON_INTERPRET"] = "1"
    # The engine looks for a backend of this name, and gives Triton up without it. The interpreter needs none.
    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)

if importlib.util.find_spec("vllm") is None:  # it pins other versions, so it has an environment of its own
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where a model is: an embedded one, or a small one with random weights, built once."""
    made = dict(minivlm.WEIGHTS)

    def build(name):
        if name not in made:
            made[name] = BUILD[name](tmp_path_factory.mktemp(name))
        return made[name]

    return build


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server that keeps a quarter, for all tests."""
    from .serving import running

    with running(tmp_path_factory.mktemp("server") / "log") as started:
        yield started


@pytest.fixture
def engine(monkeypatch):
    """Starts engines that prune as the environment tells them, one after the other."""
    running: list[Engine] = []

    def start(where, policy=None, keep=0.25, options=None, **settings):
        stop()
        for name, value in zip(HERE, (policy, keep, options), strict=True):
            monkeypatch.delenv(name, raising=False)
            if policy is not None and value is not None:
                monkeypatch.setenv(name, str(value))
        register()  # which the engine does once in a process
        running.append(Engine(where, **settings))
        assert running[-1].is_v2 == V2
        return running[-1]

    def stop():
        while running:
            running.pop().stop()
            gc.collect()

    yield start
    stop()
