"""Decode steps of a pruned model under `torch.compile`: no graph break but the stock model's, and its logits.

The backend runs the graphs as they are, so what is tested is what a compiler sees.
"""

import copy
import logging
import os

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import CompileConfig, DynamicCache, StaticCache

from tokenprune import PrunedCacheError, apply_pruning
from tokenprune.patches.cache import layout_of
from tokenprune.patches.static_columns import static_columns

from ..families import ENCODES_FIRST, FAMILIES, get_model, make_batch, one_row, ragged_batch
from ..oracles import assert_same, generate

pytestmark = pytest.mark.skipif(not ENCODES_FIRST, reason="static caches of this transformers count on the host")

FULL = os.environ.get("FULL") == "1"
STEPS = 4
SETTINGS = {
    "stock": None,
    "vision": dict(policy="divprune", keep=0.3),
    "renumbered": dict(policy="divprune", keep=0.3, positions="compact"),
    "decoder": dict(policy="fastv", keep=0.4, budget="final"),
    "history": dict(policy="grid", keep=0.3, history=1),
}
#: Each takes seconds.
CASES = [("qwen2_5_vl", "renumbered")]
if FULL:
    CASES = [(family, setting) for family in ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl") for setting in SETTINGS]


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # pytest would keep pages of it
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def decode(model, step, batch, cache):
    """Logits of a prefill by the model, and of a few steps."""
    out = model(**batch.inputs, past_key_values=cache, use_cache=True)
    logits = [out.logits[:, -1:]]
    mask = batch.inputs["attention_mask"]
    for i in range(STEPS):
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        more = {} if bool(mask.all()) else {"attention_mask": mask}
        if model.config.model_type.startswith("qwen"):  # it would look at the length on the device for them
            more["position_ids"] = torch.full((3, len(mask), 1), mask.shape[1] - 1)
        ids = torch.full((len(mask), 1), 5 + i)
        out = step(input_ids=ids, past_key_values=cache, use_cache=True, **more)
        logits.append(out.logits)
    return torch.cat(logits, 1)


def static(model, length=128):
    return StaticCache(config=model.config.get_text_config(), max_cache_len=length)


@pytest.mark.parametrize(("family", "setting"), CASES)
@torch.no_grad()
def test_one_graph_for_all_steps(family, setting):
    model, batch = copy.deepcopy(get_model(family)), one_row(family)
    if SETTINGS[setting]:
        apply_pruning(model, **SETTINGS[setting])
    expected = decode(model, model, batch, DynamicCache())
    counter = CompileCounter()
    logits = decode(model, torch.compile(model, backend=counter, fullgraph=True), batch, static(model))
    torch.testing.assert_close(logits, expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("setting", ["vision", "decoder"] if FULL else ["decoder"])
@torch.no_grad()
def test_steps_of_a_padded_batch_by_generate(setting):
    """As on a GPU, where `generate` compiles steps with a static cache: masks have one length at all steps."""
    model, batch = copy.deepcopy(get_model("llava")), ragged_batch("llava")
    apply_pruning(model, **SETTINGS[setting])
    expected = generate(model, batch.inputs, steps=STEPS)
    counter = CompileCounter()
    count = lambda *args: counter(*args)  # `generate` copies the config, and a function remains itself
    how = CompileConfig(backend=count, fullgraph=True, mode=None)
    how._compile_all_devices = True
    compiled = generate(model, batch.inputs, steps=STEPS, cache_implementation="static", compile_config=how)
    assert_same(compiled, expected)
    assert counter.frame_count == 1


@pytest.mark.skipif(not FULL, reason="half a minute of compiling; make fuzz runs it")
@torch.no_grad()
def test_what_was_compiled_serves_no_other_call():
    """Prefills, text alone and steps in turns through one compiled model; and a stock model on a pruned cache."""
    model = copy.deepcopy(get_model("llava"))
    stock, compiled = copy.deepcopy(model), torch.compile(model, backend="eager")
    apply_pruning(model, "divprune", 0.3)
    pictures, text = one_row("llava"), make_batch("llava", [[9]])
    for batch in (pictures, text, pictures):
        expected = decode(model, model, batch, DynamicCache())
        cache = static(model)
        torch.testing.assert_close(decode(compiled, compiled, batch, cache), expected)
        assert (layout_of(cache) is None) == (batch is text)
    with pytest.raises(PrunedCacheError, match="read by one without pruning"):
        stock(input_ids=torch.tensor([[5]]), past_key_values=cache)


@pytest.mark.parametrize("family", ["llava", "qwen3_5"])
def test_which_caches_have_one_length(family):
    if family not in FAMILIES:
        pytest.skip("not in this transformers")
    model = get_model(family)
    assert static_columns(static(model, 64)) == (
        64 if family == "llava" else None
    )  # linear attention counts on the host
    assert static_columns(DynamicCache()) is static_columns(None) is None
