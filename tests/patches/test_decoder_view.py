"""What a decoder-stage policy sees, and later turns on caches that were cut at decoder layers."""

import copy
import dataclasses
import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
import transformers

from tokenprune import DecoderView, apply_pruning, pruning, pruning_report
from tokenprune.patches.cache import cache_among, layout_of
from tokenprune.patches.decoder_call import DecoderContinuation
from tokenprune.policies import FastV, make_policy

from ..families import get_model, one_row, ragged_batch, text_of
from ..oracles import generate

FIELDS = [field.name for field in dataclasses.fields(DecoderView)]


@dataclass
class Wrapping(FastV):
    """FastV on a copy of the view, as a policy that wraps another makes one."""

    def decoder_select(self, view):
        narrowed = dataclasses.replace(view, n_keep=[k - 1 for k in view.n_keep])
        assert type(narrowed) is type(view)
        for name in FIELDS:
            same, given = getattr(narrowed, name), getattr(view, name)
            assert name == "n_keep" or same is given or torch.equal(same, given)
        return super().decoder_select(narrowed)


def test_a_view_can_be_copied_with_other_fields():
    model = get_model("llava")
    left = {}
    for policy in (FastV(layer=1), Wrapping(layer=1)):
        with pruning(model, policy, 0.5, budget="final"):
            generate(model, ragged_batch("llava").inputs, steps=1)
            left[type(policy)] = [record.n_last for record in pruning_report(model)]
    assert left[Wrapping] == [n - 1 for n in left[FastV]]


@dataclass
class WrappedAuto(FastV):
    """The second stage of `auto` on a copy of the view, which takes columns by `DecoderView.at`."""

    def decoder_select(self, view):
        copied = dataclasses.replace(view, n_keep=list(view.n_keep))
        values = torch.arange(2 * int(view.visual[0][-1] + 1)).view(-1, 2)
        assert torch.equal(copied.at(0, values), values[view.visual[0]])
        assert torch.equal(view.at(0, values), values[view.visual[0]])
        auto = make_policy("auto").decoder_follow_up()
        masks = [each.decoder_select(one) for each, one in ((auto, view), (auto, copied))]
        assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))
        return super().decoder_select(view)


def test_columns_of_a_copied_view_are_those_of_its_visual_inputs():
    with pruning(get_model("llava"), WrappedAuto(layer=1), 0.5, budget="final"):
        generate(get_model("llava"), ragged_batch("llava").inputs, steps=1)


@pytest.mark.parametrize("policy", ["fastv", "pyramiddrop", "auto"])
def test_nothing_holds_queries_after_a_prefill(policy):
    """Without the garbage collector, which runs now and then: queries and keys of a batch are large."""
    model, batch = get_model("llava"), ragged_batch("llava")
    seen = []
    with pruning(model, policy, 0.3, budget="final"):
        taps = {layer.self_attn.config._tokenprune_tap for layer in text_of(model).layers if tapped(layer)}
        for tap in taps:
            reader = tap.reader
            tap.reader = lambda m, q, *rest, reader=reader: (seen.append(weakref.ref(q)), reader(m, q, *rest))
        gc.collect()
        gc.disable()
        try:
            with torch.no_grad():
                model(**batch.inputs)
            assert seen and not any(each() is not None for each in seen)
        finally:
            gc.enable()


def tapped(layer):
    return hasattr(layer.self_attn.config, "_tokenprune_tap")


def mixed_windows(window):
    """A Qwen2.5-VL with full and sliding attention, in float64, and a prompt with a picture of 16 tokens."""
    text = dict(
        vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, use_sliding_window=True, sliding_window=window, max_window_layers=2,
        layer_types=["full_attention", "full_attention", "sliding_attention", "full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        rope_scaling={"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]},
    )  # fmt: skip
    vision = dict(
        depth=2, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=32, patch_size=4,
        spatial_merge_size=2, window_size=16, fullatt_block_indexes=[1],
    )  # fmt: skip
    ids = dict(image_token_id=90, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93)
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.tensor([[1, 2, 92, *[90] * 16, 93, 5, 6, 7]])
    pixels = torch.randn(64, 3 * 2 * 4 * 4, dtype=torch.float64)
    types = {"mm_token_type_ids": (tokens == 90).int()}
    return model, {"input_ids": tokens, "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 8, 8]])}, types


@pytest.mark.parametrize("window", [64, 12])
@torch.no_grad()
def test_a_turn_of_several_tokens_without_a_mask_is_as_token_by_token(window):
    model, inputs, types = mixed_windows(window)
    apply_pruning(model, FastV(layer=1), 0.25, budget="final")
    try:
        prompt = model(**inputs, **types, use_cache=True)
    except TypeError:  # earlier transformers know no token types
        prompt = model(**inputs, use_cache=True)
    cache = cache_among(vars(prompt))
    assert len(pruning_report(model)[0].cuts) == 1
    turn, single, steps = torch.tensor([[8, 9, 10]]), copy.deepcopy(cache), []
    # Given, since transformers 4 numbers a turn of several tokens differently from single ones.
    positions = (torch.arange(3) + inputs["input_ids"].shape[1]).expand(3, 1, -1)
    for i in range(3):
        token = dict(input_ids=turn[:, i : i + 1], position_ids=positions[..., i : i + 1])
        steps.append(model(**token, past_key_values=single, use_cache=True).logits)
    at_once = model(input_ids=turn, position_ids=positions, past_key_values=cache, use_cache=True).logits
    assert torch.allclose(at_once, torch.cat(steps, 1), atol=1e-9)


@torch.no_grad()
def test_what_a_layer_holds_is_counted_before_the_call():
    model = get_model("llava")
    with pruning(model, "fastv@final", 0.25, layer=1):
        prompt = model(**one_row().inputs, use_cache=True)
        cache = cache_among(vars(prompt))
        turn = torch.tensor([[3, 4, 5]])
        continued = DecoderContinuation(layout_of(cache), cache, None, 3)
        (cut,) = continued.layout.by_decoder_layer
        before = continued.valid(cut, turn.device)
        model(input_ids=turn, past_key_values=cache, use_cache=True)
        assert torch.equal(continued.valid(cut, turn.device), before)
