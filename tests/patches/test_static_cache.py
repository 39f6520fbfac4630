"""Static caches: what runs, what passes because nothing leaves, what is refused."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tokenprune import pruning, pruning_report

from ..families import FAMILIES, get_model, make_batch, picture, ragged_batch
from ..oracles import assert_same, generate, keep_mask, native_short


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_static_cache(family):
    model, batch = get_model(family), ragged_batch(family)
    with pruning(model, "random", 0.3):
        expected = generate(model, batch.inputs)
        assert_same(generate(model, batch.inputs, cache_implementation="static"), expected)


def test_static_cache_continues_a_batch_by_several_tokens():
    """With padding and a hole: `generate` makes a 4-D mask by the columns that the caller counts."""
    model, batch = get_model("llava"), ragged_batch("llava")
    with pruning(model, "random", 0.3):
        runs = []
        for cache in (DynamicCache(), StaticCache(config=model.config.get_text_config(), max_cache_len=256)):
            greedy = dict(past_key_values=cache, do_sample=False)
            out = model.generate(**batch.inputs, max_new_tokens=3, return_dict_in_generate=True, **greedy)
            ids = torch.cat([out.sequences, torch.full((4, 3), 7)], 1)
            mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, 6), value=1)
            mask[1, -3] = 0
            runs.append(generate(model, dict(input_ids=ids, attention_mask=mask), steps=3, past_key_values=cache))
        assert_same(*runs)
        ready = torch.ones(4, 1, 1, 256, dtype=torch.bool)
        cache.callers_mask = ...  # as where nobody has noted it
        with pytest.raises(ValueError, match="2-D padding mask"), torch.no_grad():
            model(input_ids=ids[:, -1:], attention_mask=ready, past_key_values=cache)


@pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].blocks])
def test_static_cache_where_the_base_builds_masks(family):
    """`generate` makes their masks in advance, of the whole prompt."""
    model, batch = get_model(family), ragged_batch(family)
    with pruning(model, "random", 0.3), pytest.raises(ValueError, match=r"default \(dynamic\) cache"):
        generate(model, batch.inputs, cache_implementation="static")


@pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].hybrid])
def test_a_static_cache_under_linear_attention(family):
    model, batch = get_model(family), make_batch(family, [[3, picture(family), 5], [4, picture(family), 4]])
    stock = generate(model, batch.inputs, cache_implementation="static")
    with pruning(model, "grid", 1.0):
        assert_same(generate(model, batch.inputs, cache_implementation="static"), stock, atol=0)
    with pruning(model, "grid", 0.3):
        run = generate(model, batch.inputs, cache_implementation="static")
        assert_same(run, generate(model, batch.inputs), atol=1e-3)
        kept = keep_mask(batch, pruning_report(model))
    assert_same(run, native_short(model, batch, kept), atol=1e-3)


@pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].blocks or FAMILIES[f].hybrid])
def test_a_static_cache_passes_where_nothing_leaves(family):
    """Everything kept, or no picture at all."""
    model, batch = get_model(family), make_batch(family, [[3, picture(family), 5]])
    text = make_batch(family, [[6]])

    def run(inputs):
        vars(model).pop("_cache", None)  # transformers 4 fails when it looks whether the last one fits
        return generate(model, inputs, cache_implementation="static")

    for keep, inputs in ((1.0, batch.inputs), (10**6, batch.inputs), (0.3, text.inputs)):
        expected = run(inputs)
        with pruning(model, "grid", keep):
            assert_same(run(inputs), expected, atol=0)
