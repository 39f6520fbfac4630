"""Later turns of a conversation on the cache of the first."""

import copy

import pytest
import torch
from transformers import DynamicCache

from tokenprune import PrunedCacheError, pruning, pruning_report

from ..builders import IMAGE
from ..families import ENCODES_FIRST, FAMILIES, Batch, Picture, get_model, make_batch, picture, ragged_batch
from ..oracles import assert_same, deep_masked, generate, keep_mask, masked, native_short, upper_masks


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
@pytest.mark.parametrize("pictures", [1, 3])
def test_token_types_of_the_whole_talk_in_a_second_turn(family, pictures):
    """As the processor gives them, one for each token of the prompt, pruned ones included."""
    model, p = get_model(family), Picture((24, 24))
    batch = make_batch(family, [[3, *[p, 2] * pictures], [2, *[p, 3] * pictures]])
    types = batch.inputs["token_type_ids"]
    later = int(family == "paligemma")
    with torch.no_grad(), pruning(model, "random", 0.3):
        out = model.generate(
            **batch.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, suppress_tokens=[IMAGE]
        )
        kept = keep_mask(batch, pruning_report(model))
        more = torch.randint(3, 89, (2, 7), generator=torch.Generator().manual_seed(1))
        ids = torch.cat([out.sequences, more], 1)
        new = ids.shape[1] - types.shape[1]
        mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, new), value=1)
        turn = dict(input_ids=ids, attention_mask=mask)
        cache = out.past_key_values
        without = generate(model, turn, past_key_values=copy.deepcopy(cache))
        if ENCODES_FIRST:
            turn["token_type_ids"] = torch.nn.functional.pad(types, (0, new), value=later)
            assert_same(generate(model, turn, past_key_values=cache), without)
    full = Batch({**batch.inputs, **turn, "token_type_ids": torch.nn.functional.pad(types, (0, new), value=later)}, [])
    assert_same(without, masked(model, full, torch.nn.functional.pad(kept, (0, new), value=True)))


@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers drops the pixels of a second turn")
@pytest.mark.parametrize("turns", [("compact", "original"), ("original", "compact")])
def test_positions_may_be_kept_in_one_turn_and_renumbered_in_another(turns):
    """What is renumbered stays renumbered: later positions go on from it."""
    model, p = get_model("llava"), Picture((24, 24))
    first, second = make_batch("llava", [[3, p, 4], [5, p, 2]]), make_batch("llava", [[3, p, 8], [6, p, 5]], 5)
    with torch.no_grad():
        with pruning(model, "grid", 0.2, positions=turns[0]):
            out = model.generate(**first.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
            kept = [keep_mask(first, pruning_report(model))]
        ids = torch.cat([out.sequences, second.inputs["input_ids"]], 1)
        mask = torch.nn.functional.pad(first.inputs["attention_mask"], (0, 3), value=1)
        mask = torch.cat([mask, second.inputs["attention_mask"]], 1)
        turn = dict(input_ids=ids, attention_mask=mask, pixel_values=second.inputs["pixel_values"])
        with pruning(model, "grid", 0.2, positions=turns[1]):
            run = generate(model, turn, past_key_values=out.past_key_values)
            kept.append(keep_mask(second, pruning_report(model)))
    pixels = torch.stack([first.inputs["pixel_values"], second.inputs["pixel_values"]], 1).flatten(0, 1)
    full = Batch({**turn, "pixel_values": pixels}, [])
    kept[0] = torch.nn.functional.pad(kept[0], (0, 3), value=True)
    closed = torch.cat([~k if how == "compact" else torch.zeros_like(k) for k, how in zip(kept, turns, strict=True)], 1)
    positions = (mask.cumsum(1) - 1 - closed.long().cumsum(1)).clamp(min=0)
    assert_same(run, masked(model, full, torch.cat(kept, 1), positions))


@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers takes no features that are computed beforehand")
@pytest.mark.parametrize("policy", ["cdpruner", "fastv", "sparsevlm", "auto"])
def test_what_is_kept_does_not_hang_on_earlier_calls(policy):
    """Features that are fed twice, with a prompt and with a longer one: only `generate` goes on with an answer."""
    model, batch = get_model("llava"), make_batch("llava", [[3, picture("llava"), 5]])
    ids = batch.inputs["input_ids"]

    def kept(ids, features, **options):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_encoder_outputs=features, **options)
        return [(r.indices, r.cuts) for r in pruning_report(model)]

    with torch.no_grad(), pruning(model, policy, 0.3, budget="final"):
        encode = lambda: {"image": model.model.get_image_features(pixel_values=batch.inputs["pixel_values"])}
        for cached in (True, False):
            for token in range(5, 50, 5):
                longer = torch.cat([ids, torch.tensor([[token]])], 1)
                alone, shared = kept(longer, encode()), encode()
                kept(ids, shared, use_cache=cached)
                assert kept(longer, shared, use_cache=cached) == alone
        twice = [generate(model, batch.inputs, steps=3, use_cache=False) for _ in range(2)]
        assert_same(*twice, atol=0)


def test_upper_layers_stay_shorter_when_a_later_turn_cuts_nothing():
    """The second picture stays whole, but the layers above the cut hold less of the first one."""
    if not ENCODES_FIRST:
        pytest.skip("this transformers drops the pixels of a second turn")
    model, p = get_model("llava"), Picture((24, 24))
    first, second = make_batch("llava", [[3, p, 4]]), make_batch("llava", [[3, p, 9]], 2)
    with pruning(model, "fastv@final", 0.3):
        out = model.generate(**first.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        upper = {i: torch.nn.functional.pad(m, (0, 3), value=True)
                 for i, m in upper_masks(first, pruning_report(model)).items()}  # fmt: skip
        ids = torch.cat([out.sequences, second.inputs["input_ids"]], 1)
        turn = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=second.inputs["pixel_values"])
        with pruning(model, "fastv@final", 36):  # all of it
            run = generate(model, turn, past_key_values=out.past_key_values)
            assert pruning_report(model)[0].cuts == ()
    pixels = torch.cat([first.inputs["pixel_values"], second.inputs["pixel_values"]])
    full = Batch({**turn, "pixel_values": pixels}, [])
    seen = torch.ones_like(ids, dtype=torch.bool)
    pad = lambda m: torch.nn.functional.pad(m, (0, ids.shape[1] - m.shape[1]), value=True)
    assert_same(run, deep_masked(model, full, seen, {i: pad(m) for i, m in upper.items()}))
