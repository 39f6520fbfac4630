"""Pictures of earlier turns shrink in the KV cache when a new turn arrives."""

import copy

import pytest
import torch
from transformers import StaticCache

from tokenprune import History, PrunedCacheError, apply_pruning, pruning, pruning_status, remove_pruning
from tokenprune.patches.cache import layout_of

from ..families import ENCODES_FIRST, Picture, get_model, make_batch
from ..support import conversations
from ..support.conversations import hold
from ..support.talks import Setting, Turn

pytestmark = pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers drops the pixels of a second turn")

A, B = Picture((24, 24)), Picture((4, 6))


def talk(history, policy="divprune", keep=0.5, positions="original", first=((3, A, 4),)):
    return Turn([list(row) for row in first], setting=Setting(policy, keep, positions, history))


TALKS = {
    "text turns": ("llava", [talk(0.1), Turn([[4]]), Turn([[3]])]),
    "none stays": ("llava", [talk(0), Turn([[4]]), Turn([[2, A, 3]]), Turn([[2]])]),
    "a picture in every turn": ("llava", [talk(0.1), Turn([[2, A, 3]]), Turn([[2, A, 3]]), Turn([[1]])]),
    "by hand": ("llava", [talk(3).but(how="forward"), Turn([[2, A, 3]], how="forward"), Turn([[3]], how="forward")]),
    "a stock prefill": ("llava", [talk(0.1, keep=1.0), Turn([[4]]), Turn([[A, 2]])]),
    "rows that lose different numbers": (
        "llava",
        [talk(2, first=((3, A, 2, A, 1), (4, A, 1), (5,))), Turn([[2], [A, 1], [A, 3]]), Turn([[1], [1], [1]])],
    ),
    "in the decoder": ("llava", [talk(3, "deep fastv", 0.3), Turn([[2, A, 3]]), Turn([[2]])]),
    "more than the decoder holds": ("llava", [talk(9, "deep vtw", 0.3), Turn([[2, A, 3]]), Turn([[2]])]),
    "coordinates": ("qwen2_5_vl", [talk(1, first=((3, B, 4), (B, B, 2))), Turn([[B, 2], [3]]), Turn([[1], [1]])]),
    "renumbered": ("llava", [talk(2, positions="compact"), Turn([[2, A, 3]]), Turn([[2]])]),
    "masks above the text model": ("paligemma", [talk(2, first=((A, 4),)), Turn([[3]]), Turn([[2]])]),
    "crops": ("llava_next", [talk(4, first=((2, Picture((20, 48)), 3),)), Turn([[4]]), Turn([[2]], crop=3)]),
    "a copy of the cache": ("llava", [talk(2), Turn([[2, A, 3]], fork=True), Turn([[2]], fork=True)]),
    "beams": ("llava", [talk(2), Turn([[2]], crop=2), Turn([[3]], how="sample")]),
    "history that is changed": (
        "llava",
        [talk(12), Turn([[2, A, 3]], setting=Setting("grid", 0.3, "original", 2)), Turn([[2]]), Turn([[2]])],
    ),
}


@pytest.mark.parametrize("name", TALKS)
def test_a_talk_goes_on_as_if_the_rest_were_masked(name):
    assert hold(*TALKS[name]) == []


def test_the_oracle_can_fail(monkeypatch):
    """What has left is visible to the stock model again."""
    monkeypatch.setattr(conversations, "forget", lambda *args: None)
    with pytest.raises(AssertionError):
        hold("llava", [talk(0.1), Turn([[4]])])


def test_the_count_can_fail(monkeypatch):
    """More stays than `history` says."""
    monkeypatch.setattr(History, "count", lambda self, n: n)
    assert hold("llava", [talk(3), Turn([[4]])]) == []
    monkeypatch.undo()
    counts = iter([18])  # what leaves; then what the check counts
    real = History.count
    monkeypatch.setattr(History, "count", lambda self, n: next(counts, None) or real(self, n))
    with pytest.raises(AssertionError, match=r"18 tokens of an earlier picture are held, and history leaves 3"):
        hold("llava", [talk(3), Turn([[4]])])


def run(model, batch, cache=None, steps=3):
    inputs = batch if cache is None else {**batch, "past_key_values": cache}
    how = dict(do_sample=False, return_dict_in_generate=True, max_new_tokens=steps, min_new_tokens=steps)
    return model.generate(**inputs, **how)


def continued(ids, more):
    ids = torch.cat([ids, more], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def held(cache):
    """Columns that each layer of a cache holds."""
    return [layer.keys.shape[2] for layer in cache.layers]


@pytest.mark.parametrize(("history", "left"), [(0, 0), (0.1, 4), (5, 5), (History(0.25, "grid"), 9), (100, 18)])
def test_as_many_stay_as_asked(history, left):
    model, batch = get_model("llava"), make_batch("llava", [[3, A, 4]], 0)
    with pruning(model, "divprune", 0.5, history=history):
        first = run(model, batch.inputs)
        before = held(first.past_key_values)
        second = run(model, continued(first.sequences, torch.tensor([[7, 8]])), first.past_key_values, steps=1)
    # The second turn adds the last answer's token, two of text, and nothing of its own answer.
    assert [b - a for a, b in zip(held(second.past_key_values), before, strict=True)] == [18 - left - 3] * len(before)


def test_a_picture_shrinks_once_and_answers_leave_it_alone():
    model, batch = get_model("llava"), make_batch("llava", [[3, A, 4]], 0)
    with pruning(model, "divprune", 0.5, history=0.25):
        first = run(model, batch.inputs, steps=6)
        cache, ids = first.past_key_values, first.sequences
        assert held(cache)[0] == ids.shape[1] - 1 - 36 + 18
        for turn in range(3):
            out = run(model, continued(ids, torch.tensor([[7, 8]])), cache, steps=4)
            cache, ids = out.past_key_values, out.sequences
            assert held(cache)[0] == ids.shape[1] - 1 - 36 + 9, turn


def test_tokens_that_are_checked_at_once_are_no_turn():
    """Prompt lookup feeds several tokens while it answers."""
    model, batch = get_model("llava"), make_batch("llava", [[3, A, 4]], 0)
    with pruning(model, "divprune", 0.5, history=0):
        out = run(model, batch.inputs, steps=8)
        how = dict(do_sample=False, return_dict_in_generate=True, max_new_tokens=8, min_new_tokens=8)
        looked_up = model.generate(**batch.inputs, **how, prompt_lookup_num_tokens=3)
    assert looked_up.sequences.tolist() == out.sequences.tolist()


@pytest.mark.parametrize(
    ("history", "error"),
    [
        (1.0, r"history=1.0 is no budget for earlier pictures; accepted: 0, a float in \(0, 1\)"),
        (-1, "history=-1 is no budget"),
        (True, "history=True is no budget"),
        ("0.1", "history='0.1' is no budget"),
        (float("nan"), "history=nan is no budget"),
        (("divprune", 0.1), "is no budget"),
    ],
)
def test_what_is_no_history(history, error):
    with pytest.raises(ValueError, match=error):
        apply_pruning(get_model("llava"), "divprune", 0.5, history=history)


@pytest.mark.parametrize("policy", ["visionzip", "fastv", "cdpruner", "tome", "auto"])
def test_policies_that_cannot_choose_from_a_cache(policy):
    with pytest.raises(ValueError, match=f"history cannot be chosen by policy '{policy}'"):
        History(0.1, policy)


def test_models_and_caches_that_cannot_follow():
    with pytest.raises(ValueError, match="layers with a sliding window"):
        apply_pruning(get_model("gemma3"), "divprune", 0.5, history=0.1)
    with pytest.raises(ValueError, match=r"layers \(linear_attention\) that keep a state"):
        apply_pruning(get_model("qwen3_5"), "divprune", 0.5, history=0.1)
    model, batch = get_model("llava"), make_batch("llava", [[3, A, 4]], 0)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=80)
    with pruning(model, "divprune", 0.5, history=0.1):
        first = run(model, batch.inputs, cache)
        with pytest.raises(PrunedCacheError, match=r"history=0.1 lets columns leave .* default \(dynamic\) cache"):
            run(model, continued(first.sequences, torch.tensor([[7]])), cache)


def test_the_status_tells_it_and_no_hook_is_left():
    model = copy.deepcopy(get_model("llava"))
    apply_pruning(model, "divprune", 0.5, history=0.05)
    assert "earlier turns: 0.05 of the tokens" in str(pruning_status(model))
    remove_pruning(model)
    out = run(model, make_batch("llava", [[3, A, 4]], 0).inputs)
    assert layout_of(out.past_key_values) is None
