"""Layers that see a window: it counts what is left."""

import copy

import pytest
import torch

from tokenprune import PrunedCacheError, pruning, pruning_report

from ..builders import IMAGE
from ..families import CASES, ENCODES_FIRST, get_model, make_batch, picture, ragged_batch, text_of
from ..oracles import assert_same, generate, keep_mask, native_short


def with_window(family, window):
    """A copy whose sliding layers see so many columns; all layers, where the config does not tell them apart."""
    model = copy.deepcopy(get_model(family))
    text = text_of(model)
    for config in (text.config, model.config.text_config, *(layer.self_attn.config for layer in text.layers)):
        config.sliding_window = window
    for layer in text.layers:
        if getattr(layer.self_attn, "sliding_window", None) is not None:
            layer.self_attn.sliding_window = window
    return model


@pytest.mark.parametrize("family", ["gemma3", *(name for name in CASES if name.startswith("gemma4"))])
def test_gemma_windows_count_what_is_left(family):
    """A sliding window shorter than the prompt, over pictures that attend to themselves both ways, or not."""
    model, batch = with_window(family, 6), ragged_batch(family)
    with pruning(model, "random", 0.5, positions="original"):
        run = generate(model, batch.inputs, 5)
        kept = keep_mask(batch, pruning_report(model))
    assert_same(run, native_short(model, batch, kept, steps=5, window=6))
    other = with_window(family, 7)
    with pytest.raises(AssertionError):
        assert_same(run, native_short(other, batch, kept, steps=5, window=7))


@pytest.mark.parametrize("policy", ["fastv", "pyramiddrop", ["grid", "fastv"]])
@pytest.mark.parametrize("family", ["mistral3", "cohere2_vision"])
def test_layers_that_hold_less_keep_their_windows(family, policy):
    """With a cache a layer sees its window because it holds no more, without one because of its mask."""
    if policy == "pyramiddrop" and not ENCODES_FIRST:
        pytest.skip("without a cache, this transformers has it choose by the answer so far as well")
    model, batch = with_window(family, 6), make_batch(family, [[3, picture(family), 8]])
    options = dict(steps=5, suppress_tokens=[IMAGE])
    with pruning(model, policy, 0.4, budget="final"):
        cached = generate(model, batch.inputs, **options)
        assert_same(generate(model, batch.inputs, use_cache=False, **options), cached)
    wide = with_window(family, 4096)
    with pruning(wide, policy, 0.4, budget="final"):
        assert not torch.allclose(generate(wide, batch.inputs, **options).logits, cached.logits)


@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers drops the pixels of a second turn")
@pytest.mark.parametrize("policy", ["grid", "fastv"])
def test_windows_that_end_inside_the_talk_refuse_pictures_of_later_turns(policy):
    """Where padding between the turns would use them up: rows that lose different numbers, or a decoder stage."""
    p = picture("cohere2_vision")
    for window, rows in ((20, [[3, p, 2, p, 4], [30, p, 5]]), (4096, [[3, p, 2, p, 4], [30, p, 5]])):
        model = with_window("cohere2_vision", window)
        first, second = make_batch("cohere2_vision", [[3, p, 4]] * 2), make_batch("cohere2_vision", rows, 2)
        with pruning(model, policy, 0.3, budget="final"):
            out = model.generate(**first.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
            ids = torch.cat([out.sequences, second.inputs["input_ids"]], 1)
            mask = torch.nn.functional.pad(first.inputs["attention_mask"], (0, 3), value=1)
            mask = torch.cat([mask, second.inputs["attention_mask"]], 1)
            turn = dict(input_ids=ids, attention_mask=mask, pixel_values=second.inputs["pixel_values"])
            if window == 4096:
                generate(model, turn, past_key_values=out.past_key_values)
                continue
            with pytest.raises(PrunedCacheError, match="window of 20"):
                generate(model, turn, past_key_values=out.past_key_values)
