"""Ways in which pruning goes wrong without an error, each held against the oracle."""

import copy
import threading

import pytest
import torch
import transformers
from transformers import DynamicCache, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenprune import PrunedCacheError, apply_pruning, pruning, pruning_report, remove_pruning
from tokenprune.patches.cache import layout_of, physical_length

from .families import (
    ENCODES_FIRST,
    FAMILIES,
    IMAGE,
    PLAIN_FAMILIES,
    Batch,
    Picture,
    get_model,
    make_batch,
    ragged_batch,
    text_of,
)
from .oracles import assert_same, generate, keep_mask, masked, native_short, text_inputs

ALL = PLAIN_FAMILIES


def one_row(family):
    return make_batch(family, [[3, Picture(FAMILIES[family].sizes[0]), 5]])


def without_mask(batch: Batch) -> dict:
    return {k: v for k, v in batch.inputs.items() if k != "attention_mask"}


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("family", ALL)
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


@pytest.mark.parametrize("family", ALL)
def test_cache_is_physically_shorter(family):
    model, batch = get_model(family), ragged_batch(family)
    with torch.no_grad(), pruning(model, "divprune", 0.3):
        out = model(**batch.inputs, use_cache=True)
        kept = keep_mask(batch, pruning_report(model)) & batch.inputs["attention_mask"].bool()
    cache, length = out.past_key_values, int(kept.sum(1).max())
    assert all(layer.keys.shape[-2] == layer.values.shape[-2] == length for layer in cache.layers)
    assert physical_length(cache) == length < batch.inputs["input_ids"].shape[1] == cache.get_seq_length()
    assert out.logits.shape[1] == length


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_second_turn_remembers_decoded_columns(positions):
    """A second turn on a reused cache: its mask covers prompt, decoded and new columns."""
    model, batch = get_model("llava"), ragged_batch("llava")
    with pruning(model, "random", 0.3, positions=positions):
        first = model.generate(
            **batch.inputs,
            max_new_tokens=4,
            do_sample=False,
            return_dict_in_generate=True,
            past_key_values=DynamicCache(),
        )
        kept = keep_mask(batch, pruning_report(model))
        ids = torch.cat([first.sequences, torch.randint(3, 89, (4, 5), generator=torch.Generator().manual_seed(1))], 1)
        mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, ids.shape[1] - kept.shape[1]), value=1)
        turn = dict(input_ids=ids, attention_mask=mask)
        run = generate(model, turn, past_key_values=first.past_key_values)
    full = Batch({**batch.inputs, **turn}, batch.visuals)
    kept = torch.nn.functional.pad(kept, (0, ids.shape[1] - kept.shape[1]), value=True)
    assert_same(run, masked(model, full, kept, positions))
    assert_same(run, native_short(model, full, kept, positions))


@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers drops the pixels of a second turn")
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_second_turn_with_a_new_image(positions):
    """The new image is pruned too, and the layout covers both turns."""
    model = get_model("llava")
    picture = Picture((24, 24))
    first, second = (
        make_batch("llava", [[3, picture, 4], [9, picture, 2]]),
        make_batch("llava", [[3, picture, 2], [1, picture, 4]], 5),
    )
    with pruning(model, "random", 0.3, positions=positions):
        out = model.generate(**first.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        kept_first = keep_mask(first, pruning_report(model))
        ids = torch.cat([out.sequences, second.inputs["input_ids"]], 1)
        offset = out.sequences.shape[1]
        mask = torch.cat(
            [torch.nn.functional.pad(first.inputs["attention_mask"], (0, 3), value=1), second.inputs["attention_mask"]],
            1,
        )
        turn = dict(input_ids=ids, attention_mask=mask, pixel_values=second.inputs["pixel_values"])
        run = generate(model, turn, past_key_values=out.past_key_values)
        kept_second = keep_mask(second, pruning_report(model))
    pixels = torch.stack([first.inputs["pixel_values"], second.inputs["pixel_values"]], 1).flatten(0, 1)
    full = Batch({**turn, "pixel_values": pixels}, [])
    kept = torch.cat([torch.nn.functional.pad(kept_first, (0, 3), value=True), kept_second], 1)
    assert kept.shape[1] == offset + kept_second.shape[1]
    assert_same(run, masked(model, full, kept, positions))
    assert_same(run, native_short(model, full, kept, positions))


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


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_loss_of_ragged_rows(family):
    """Loss and its tokens equal those of the rows fed short and alone; padding predicts nothing."""
    model, batch = get_model(family), ragged_batch(family)
    labels = batch.inputs["input_ids"].masked_fill(batch.inputs["attention_mask"] == 0, -100)
    kept_labels = labels.clone()
    with torch.no_grad(), pruning(model, "random", 0.3, positions="original"):
        out = model(**batch.inputs, labels=labels)
        kept = keep_mask(batch, pruning_report(model))
    assert torch.equal(labels, kept_labels)  # the caller's tensor is the caller's
    text, total, count = text_inputs(model, batch.inputs), 0.0, 0
    for row in range(4):
        columns = (kept[row] & text["mask"][row]).nonzero()[:, 0]
        with torch.no_grad():
            hidden = text_of(model)(
                inputs_embeds=text["embeds"][row : row + 1, columns],
                position_ids=text["positions"][..., row : row + 1, columns],
                attention_mask=torch.ones(1, len(columns), dtype=torch.bool),
            ).last_hidden_state
            logits = model.lm_head(hidden)[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, labels[row, columns[1:]], reduction="sum").item()
        count += len(columns) - 1
    assert out.loss.item() == pytest.approx(total / count, abs=1e-6)  # transformers computes it in float32


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
    with pruning(model, policy, 0.3):
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


def test_custom_4d_mask_is_refused():
    model, batch = get_model("llava"), one_row("llava")
    n = batch.inputs["input_ids"].shape[1]
    ready = {**batch.inputs, "attention_mask": torch.ones(1, 1, n, n, dtype=torch.bool).tril()}
    with pruning(model, "random", 0.3), pytest.raises(ValueError, match="2-D padding mask"):
        model(**ready)
    with torch.no_grad(), pruning(model, "random", 1.0):  # nothing leaves, and nobody has to read it
        logits = model(**ready).logits
    with torch.no_grad():
        assert torch.equal(model(**ready).logits, logits)


def test_pruned_cache_is_refused_once_pruning_is_removed():
    model, batch = get_model("llava"), ragged_batch("llava")
    apply_pruning(model, "random", 0.3)
    with torch.no_grad():
        cache = model(**batch.inputs, use_cache=True).past_key_values
    remove_pruning(model)
    with pytest.raises(PrunedCacheError, match="removed"), torch.no_grad():
        model(input_ids=torch.ones(4, 1, dtype=torch.long), past_key_values=cache)


def test_cropping_a_cache():
    model, batch = get_model("llava"), ragged_batch("llava")
    with torch.no_grad(), pruning(model, "random", 0.3, positions="original"):
        out = model(**batch.inputs, use_cache=True)
        cache, length = out.past_key_values, out.past_key_values.get_seq_length()
        step = dict(attention_mask=torch.nn.functional.pad(batch.inputs["attention_mask"], (0, 1), value=1))
        tokens = torch.full((4, 1), 7)
        expected = model(input_ids=tokens, past_key_values=copy.deepcopy(cache), **step).logits
        model(input_ids=tokens + 3, past_key_values=cache, **step)
        cache.crop(-1)  # the decoded column goes
        assert cache.get_seq_length() == length
        assert torch.equal(model(input_ids=tokens, past_key_values=cache, **step).logits, expected)
        cache.crop(-3)  # and two text columns of the prompt with it
        assert cache.get_seq_length() == length - 2
        assert layout_of(cache).logical_length == length - 2
        with pytest.raises(PrunedCacheError, match="crop"):
            cache.crop(-60)


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_layout_follows_the_rows_of_its_cache(positions):
    """Reordered, selected and repeated rows (beams, contrastive search) keep their own padding."""
    model, batch = get_model("llava"), ragged_batch("llava")
    mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, 1), value=1)
    tokens = torch.tensor([[7], [11], [13], [17]])

    def step(cache, rows):
        place = mask[rows].cumsum(1)[:, -1:] - 1
        return model(
            input_ids=tokens[rows], attention_mask=mask[rows], position_ids=place, past_key_values=cache
        ).logits

    with torch.no_grad(), pruning(model, "random", 0.3, positions=positions):
        cache = model(**batch.inputs, use_cache=True).past_key_values
        expected = step(copy.deepcopy(cache), torch.arange(4))
        for method, argument, rows in (
            ("reorder_cache", torch.tensor([3, 1, 0, 0]), torch.tensor([3, 1, 0, 0])),
            ("batch_select_indices", torch.tensor([2, 3]), torch.tensor([2, 3])),
            ("batch_repeat_interleave", 2, torch.arange(4).repeat_interleave(2)),
        ):
            moved = copy.deepcopy(cache)
            getattr(moved, method)(argument)
            torch.testing.assert_close(step(moved, rows), expected[rows], rtol=0, atol=1e-9)
        cache.reset()
        assert layout_of(cache) is None
        assert cache.get_seq_length() == physical_length(cache)


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


def test_gemma_windows_count_what_is_left():
    """A sliding window shorter than the prompt, over pictures that attend to themselves both ways."""
    model, batch = copy.deepcopy(get_model("gemma3")), ragged_batch("gemma3")
    text = text_of(model)
    for config in (text.config, model.config.text_config, *(layer.self_attn.config for layer in text.layers)):
        config.sliding_window = 6
    for layer in text.layers:
        if layer.self_attn.sliding_window is not None:
            layer.self_attn.sliding_window = 6
    with pruning(model, "random", 0.5, positions="original"):
        run = generate(model, batch.inputs)
        kept = keep_mask(batch, pruning_report(model))
    assert_same(run, native_short(model, batch, kept, window=6))
    with pytest.raises(AssertionError):
        assert_same(run, native_short(model, batch, kept, window=7))


@pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].blocks])
def test_second_turns_where_the_base_builds_masks(family):
    """A text turn equals the masked original; a new picture over sliding windows is refused."""
    model, picture = get_model(family), Picture((24, 24))
    batch = make_batch(family, [[3, picture, 4], [9, picture, 2]])
    types = batch.inputs["token_type_ids"]
    with torch.no_grad(), pruning(model, "random", 0.3, positions="original"):
        out = model.generate(**batch.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        kept = keep_mask(batch, pruning_report(model))
        ids = torch.cat([out.sequences, torch.tensor([[7, 8, 9], [8, 7, 6]])], 1)
        mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, 6), value=1)
        turn = dict(input_ids=ids, attention_mask=mask)
        run = generate(model, turn, past_key_values=copy.deepcopy(out.past_key_values))
        again = {
            "input_ids": torch.cat([ids, batch.inputs["input_ids"]], 1),
            "attention_mask": torch.cat([mask, batch.inputs["attention_mask"]], 1),
            "token_type_ids": torch.cat([torch.nn.functional.pad(types, (0, 6)), types], 1),
            "pixel_values": batch.inputs["pixel_values"],
        }
        if family == "gemma3" and ENCODES_FIRST:  # older ones feed no picture in a later turn
            with pytest.raises(PrunedCacheError, match="start a fresh cache"):
                model.generate(**again, past_key_values=out.past_key_values, max_new_tokens=2)
    later = int(family == "paligemma")  # whose types tell the causal part
    full = Batch({**batch.inputs, **turn, "token_type_ids": torch.nn.functional.pad(types, (0, 6), value=later)}, [])
    assert_same(run, masked(model, full, torch.nn.functional.pad(kept, (0, 6), value=True)))


@pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].blocks])
def test_static_cache_where_the_base_builds_masks(family):
    """`generate` makes their masks in advance, of the whole prompt."""
    model, batch = get_model(family), ragged_batch(family)
    with pruning(model, "random", 0.3), pytest.raises(ValueError, match=r"default \(dynamic\) cache"):
        generate(model, batch.inputs, cache_implementation="static")
