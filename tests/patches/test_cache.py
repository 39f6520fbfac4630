"""The KV cache of a pruned model: its length, cropping, reordering, removal."""

import copy

import pytest
import torch

from tokenprune import PrunedCacheError, apply_pruning, pruning, pruning_report, remove_pruning
from tokenprune.patches.cache import layout_of, physical_length

from ..families import ENCODES_FIRST, PLAIN_FAMILIES, Picture, get_model, make_batch, ragged_batch
from ..oracles import keep_mask


@pytest.mark.parametrize("family", PLAIN_FAMILIES)
def test_cache_is_physically_shorter(family):
    model, batch = get_model(family), ragged_batch(family)
    with torch.no_grad(), pruning(model, "divprune", 0.3):
        out = model(**batch.inputs, use_cache=True)
        kept = keep_mask(batch, pruning_report(model)) & batch.inputs["attention_mask"].bool()
    cache, length = out.past_key_values, int(kept.sum(1).max())
    assert all(layer.keys.shape[-2] == layer.values.shape[-2] == length for layer in cache.layers)
    assert physical_length(cache) == length < batch.inputs["input_ids"].shape[1] == cache.get_seq_length()
    assert out.logits.shape[1] == length


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


@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers drops the pixels of a second turn")
@pytest.mark.parametrize("policy", ["fastv", "vtw", "dart", "pyramiddrop", "divprune", "auto"])
@pytest.mark.parametrize("crop", [1, 4, 9])
def test_cropping_into_the_text_of_a_later_turn(policy, crop):
    """A picture in each of two turns, then back into the second's text: as if that had not been said."""
    model, p = get_model("llava"), Picture((24, 24))
    first, second = make_batch("llava", [[3, p, 4]]), make_batch("llava", [[3, p, 9]], 2)
    greedy = dict(do_sample=False, return_dict_in_generate=True)
    with pruning(model, policy, 0.3, budget="final"):
        out = model.generate(**first.inputs, max_new_tokens=3, **greedy)
        ids = torch.cat([out.sequences, second.inputs["input_ids"]], 1)
        turn = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=second.inputs["pixel_values"])
        with torch.no_grad():
            cache, fed = out.past_key_values, ids[:, out.past_key_values.get_seq_length() :]
            whole = model(
                input_ids=fed, attention_mask=torch.ones_like(ids), pixel_values=turn["pixel_values"],
                past_key_values=copy.deepcopy(cache),
            ).past_key_values  # fmt: skip
            whole.crop(-crop)
            assert whole.get_seq_length() == ids.shape[1] - crop
            again = model(input_ids=ids[:, -crop:], attention_mask=torch.ones_like(ids), past_key_values=whole).logits
            expected = model(
                input_ids=fed, attention_mask=torch.ones_like(ids), pixel_values=turn["pixel_values"],
                past_key_values=copy.deepcopy(cache),
            ).logits  # fmt: skip
            torch.testing.assert_close(again, expected[:, -crop:], rtol=0, atol=1e-9)
            with pytest.raises(PrunedCacheError, match="crop"):
                whole.crop(-crop - 30)
