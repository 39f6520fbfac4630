"""KV caches of every kind, and later turns on them."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers

from tokenprune import pruning

from .. import test_silent_failures
from ..families import ENCODES_FIRST, FAMILIES, Picture, get_model, one_row, ragged_batch
from ..oracles import assert_same, generate
from ..patches import test_cache, test_copies, test_later_turns, test_sliding_windows
from ..patches import test_static_cache as static_caches
from ..support.conversations import hold
from ..support.talks import Setting, Turn
from .cells import area

AREA = "Caches"
cell = area(AREA)


@cell("static")
def test_static_cache(family):
    model, batch = get_model(family), ragged_batch(family)
    with pruning(model, "divprune", 0.3):
        expected = generate(model, batch.inputs)
        assert_same(generate(model, batch.inputs, cache_implementation="static"), expected)


@cell("static, under linear attention", "as a shorter prompt", families=("qwen3_5",))
def test_static_hybrid(family):
    if family not in FAMILIES:
        pytest.skip("newer than this transformers")
    static_caches.test_a_static_cache_under_linear_attention(family)


@cell(
    "static, where pictures attend to themselves both ways",
    "refused, unless everything stays or there is no picture",
    ("gemma3",),
)
def test_static_blocks(family):
    static_caches.test_a_static_cache_passes_where_nothing_leaves(family)
    static_caches.test_static_cache_where_the_base_builds_masks(family)


@cell("a pruned cache on a copy of the model that is not pruned", "refused", families=("llava",))
def test_foreign_cache(family):
    test_copies.test_a_cache_is_refused_by_a_copy_that_is_not_pruned("divprune")


@cell("deep copies of a cache", "go on as the original does")
def test_copied_cache(family):
    model, batch = get_model(family), ragged_batch(family)
    inputs = batch.inputs
    with torch.no_grad(), pruning(model, "divprune", 0.3, positions="original"):
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        cache = copy.deepcopy(out.past_key_values)
        ids = torch.cat([out.sequences, torch.full((4, 2), 9)], 1)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 5), value=1)
        more = dict(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
        a, b = (model.generate(**more, past_key_values=c) for c in (out.past_key_values, cache))
    assert torch.equal(a, b)


@cell("a second turn with new text, on the cache of the first", families=("llava",))
def test_second_turn(family):
    for positions in ("original", "compact"):
        test_later_turns.test_second_turn_remembers_decoded_columns(positions)


@cell("a second turn with a new image, on the cache of the first", families=("llava",))
def test_second_picture(family):
    if not ENCODES_FIRST:
        pytest.skip("this transformers drops the pixels of a second turn")
    for positions in ("original", "compact"):
        test_later_turns.test_second_turn_with_a_new_image(positions)


@cell("pictures of earlier turns that shrink (`history`)", "as if masked from the new turn on", families=("llava",))
def test_history(family):
    if not ENCODES_FIRST:
        pytest.skip("this transformers drops the pixels of a second turn")
    first = Turn([[3, Picture((24, 24)), 4]], setting=Setting("divprune", 0.5, "original", 0.1))
    assert hold(family, [first, Turn([[2]])]) == []


@cell("cropping a cache", "after the pictures; else an error that says so", families=("llava",))
def test_cropped(family):
    test_cache.test_cropping_a_cache()


@cell("quantised (quanto), offloaded by layer", "runs; quantised keys are no longer comparable to the digit")
def test_quantised_cache(family, monkeypatch):
    pytest.importorskip("optimum.quanto")
    from optimum.quanto.library.extensions import cpp

    def unpack(packed, bits):
        """Several numbers of a few bits out of each byte, as quanto's extension in C++ does."""
        return torch.cat([packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)])

    # Compiling the extension takes half a minute.
    monkeypatch.setattr(cpp.ext, "_lib", SimpleNamespace(unpack=unpack))
    model, batch = copy.deepcopy(get_model(family)).float(), ragged_batch(family)
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in batch.inputs.items()}
    with pruning(model, "divprune", 0.3):
        expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        config = {"backend": "quanto", "nbits": 4, "q_group_size": 8, "residual_length": 64}
        run = model.generate(
            **inputs, max_new_tokens=6, do_sample=False, cache_implementation="quantized", cache_config=config
        )
    # nothing is quantised before the residual is full but the prompt, at its end
    assert run.shape == expected.shape
    assert torch.equal(run[:, : inputs["input_ids"].shape[1] + 1], expected[:, : inputs["input_ids"].shape[1] + 1])


@cell("sliding windows shorter than the prompt", "a shorter prompt's: windows count what is left", ("gemma3",))
def test_windows(family):
    test_sliding_windows.test_gemma_windows_count_what_is_left(family)


@cell("eight threads at once on one model", "each as alone", families=("llava",))
def test_threads(family):
    if transformers.__version__.startswith("5.0"):
        pytest.skip("transformers 5.0 mixes up threads, with pruning or without")
    test_silent_failures.test_threads_do_not_mix(family, "fopru")


# Qwen-VL keeps the offset of its positions on the model: an own loop over two talks mixes them up unpruned, too.
@cell("two conversations in turns on one model", "neither sees the other's", families=("llava",))
def test_in_turns(family):
    model = get_model(family)
    talks = [one_row(family, 5), one_row(family, 8)]
    with torch.no_grad(), pruning(model, "divprune", 0.3):
        alone = [generate(model, talk.inputs) for talk in talks]
        outs = [model(**talk.inputs, use_cache=True) for talk in talks]
        tokens = [[], []]
        for _ in range(9):
            for i in (0, 1):
                tokens[i].append(outs[i].logits[:, -1].argmax(-1))
                done = talks[i].inputs["input_ids"].shape[1] + len(tokens[i])
                outs[i] = model(
                    input_ids=tokens[i][-1][:, None],
                    attention_mask=torch.ones(1, done, dtype=torch.int64),
                    past_key_values=outs[i].past_key_values,
                )
    for i in (0, 1):
        assert torch.equal(torch.stack(tokens[i], 1), alone[i].tokens)
