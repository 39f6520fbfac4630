"""Ways in which pruning goes wrong without an error, each held against the oracle."""

import copy
import threading

import pytest
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenprune import pruning, pruning_report
from tokenprune.patches.cache import physical_length

from .builders import IMAGE
from .families import ENCODES_FIRST, FAMILIES, PLAIN_FAMILIES, Batch, get_model, one_row, ragged_batch, text_of
from .oracles import generate, keep_mask, native_short, text_inputs


def without_mask(batch: Batch) -> dict:
    return {k: v for k, v in batch.inputs.items() if k != "attention_mask"}


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("family", PLAIN_FAMILIES)
def test_position_gaps_are_not_packed_sequences(family, use_cache):
    """Plain forward, no mask: transformers would read the gap after an image as a border."""
    model, batch = get_model(family), one_row(family)
    with torch.no_grad(), pruning(model, "random", 0.3, positions="original"):
        logits = model(**without_mask(batch), use_cache=use_cache).logits[:, -1]
        kept = keep_mask(batch, pruning_report(model))
    torch.testing.assert_close(logits.float(), native_short(model, batch, kept, steps=1).logits[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_flash_attention_sees_no_position_gaps(family):
    """FlashAttention takes gaps in the position ids it is handed for packed sequences."""
    model, batch = copy.deepcopy(get_model(family)), one_row(family)
    seen = []

    def probe(module, query, key, value, mask, position_ids=None, **kwargs):
        seen.append(position_ids)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("flash_probe", probe)
    try:
        for module in text_of(model).modules():
            if hasattr(module, "config"):
                module.config._attn_implementation_internal = "flash_probe"
        with pruning(model, "random", 0.3, positions="original"):
            generate(model, batch.inputs, steps=3)
            assert seen and all(p is None for p in seen)
        seen.clear()
        generate(model, batch.inputs, steps=2)
        assert any(p is not None for p in seen)  # the probe does see them on the stock model
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("flash_probe")


def test_prefill_is_not_judged_by_length_or_ids():
    """A text-only continuation that is long and holds the placeholder's id prunes nothing."""
    model, batch = get_model("llava"), one_row("llava")
    with torch.no_grad(), pruning(model, "random", 0.3, positions="original"):
        cache = model(**batch.inputs, use_cache=True).past_key_values
        report = pruning_report(model)
        kept = keep_mask(batch, report)
        before = physical_length(cache)
        tail = torch.tensor([[5, IMAGE, IMAGE, 7]])
        ids = torch.cat([batch.inputs["input_ids"], tail], 1)
        logits = model(input_ids=tail, attention_mask=torch.ones_like(ids), past_key_values=cache).logits
        assert pruning_report(model) == report
        assert physical_length(cache) == before + 4
    with torch.no_grad():
        text = text_inputs(model, batch.inputs)
        embeds = torch.cat([text["embeds"], model.get_input_embeddings()(tail)], 1)
        mask = torch.nn.functional.pad(kept, (0, 4), value=True)
        hidden = text_of(model)(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(logits, model.lm_head(hidden[:, -4:]), rtol=0, atol=1e-5)


def test_interleaved_requests_do_not_mix():
    model = get_model("llava")
    batches = [ragged_batch("llava", seed=s) for s in (0, 1)]
    with torch.no_grad(), pruning(model, "random", 0.3, positions="original"):
        states, alone = [], []
        for batch in batches:
            alone.append(generate(model, batch.inputs, steps=5))
            out = model(**batch.inputs, use_cache=True)
            states.append([out.past_key_values, batch.inputs["attention_mask"], out.logits[:, -1:].argmax(-1)])
        tokens = [[], []]
        for _ in range(5):
            for i, state in enumerate(states):  # one step of each in turn
                tokens[i].append(state[2])
                state[1] = torch.nn.functional.pad(state[1], (0, 1), value=1)
                positions = state[1].cumsum(1)[:, -1:] - 1
                out = model(
                    input_ids=state[2], attention_mask=state[1], position_ids=positions, past_key_values=state[0]
                )
                state[2] = out.logits[:, -1:].argmax(-1)
    # plain forward numbers positions from the padding on, so only unpadded rows agree with generate
    for i, batch in enumerate(batches):
        unpadded = batch.inputs["attention_mask"].all(1)
        assert unpadded.any()
        assert torch.equal(torch.cat(tokens[i], 1)[unpadded], alone[i].tokens[unpadded])


@pytest.mark.skipif(transformers.__version__.startswith("5.0."), reason="transformers 5.0 mixes threads up unpruned")
@pytest.mark.parametrize("policy", ["random", "fopru", "fastv", ["random", "fastv"]])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_threads_do_not_mix(family, policy):
    model = get_model(family)
    batches = [ragged_batch(family, seed=s) for s in range(4)]
    with pruning(model, policy, 0.3, budget="final"):
        alone = [generate(model, b.inputs) for b in batches]
        for _ in range(3):
            runs = [None] * len(batches)

            def work(i, runs=runs):
                runs[i] = generate(model, batches[i].inputs)

            threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            for run, expected in zip(runs, alone, strict=True):
                assert torch.equal(run.tokens, expected.tokens)
                assert torch.equal(run.logits, expected.logits)


@pytest.mark.parametrize("kwargs", [dict(num_beams=3), dict(num_return_sequences=2, do_sample=True, seed=1)])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_expanded_rows(family, kwargs):
    """Beams and several returned sequences: every copy of a sample sees its own image, pruned alike."""
    if not ENCODES_FIRST and family == "llava_next":
        pytest.skip("this transformers interleaves the images of a row when it expands a batch")
    model, batch = get_model(family), ragged_batch(family)
    copies = kwargs.get("num_beams", kwargs.get("num_return_sequences"))
    kwargs = dict(kwargs)
    torch.manual_seed(kwargs.pop("seed", 0))
    options = dict(do_sample=False) | kwargs
    with pruning(model, "grid", 0.3):
        model.generate(**batch.inputs, max_new_tokens=5, **options)
        records = pruning_report(model)
        generate(model, batch.inputs, steps=1)
        single = pruning_report(model)
    assert len(records) == copies * len(single)
    for record in records:
        (twin,) = [s for s in single if (s.sample, s.visual) == (record.sample // copies, record.visual)]
        assert (record.indices, record.grids) == (twin.indices, twin.grids)


@pytest.mark.parametrize("family", [f for f in PLAIN_FAMILIES if FAMILIES[f].video])
def test_plain_forward_of_images_and_videos(family):
    """Features are matched to their own placeholders when the model encodes inside forward()."""
    model, batch = get_model(family), ragged_batch(family, video=True)
    with torch.no_grad(), pruning(model, "grid", 0.3):
        model(**batch.inputs)
        plain = pruning_report(model)
        generate(model, batch.inputs, steps=1)
        encoded_first = pruning_report(model)
    assert [(r.kind, r.indices, r.grids) for r in plain] == [(r.kind, r.indices, r.grids) for r in encoded_first]
    assert all(r.grids for r in plain)
