"""Hooks: all of them or none, replaced, nested, removed, and never changed while the model runs."""

import copy
import functools
import threading

import pytest
import torch

from tokenprune import PrunedCacheError, apply_pruning, pruning, pruning_report, remove_pruning

from ..families import FAMILIES, PLAIN_FAMILIES, get_model, one_row, ragged_batch, text_of
from ..oracles import generate
from ..support.calls import Calls, interrupt
from ..support.snapshot import snapshot


@pytest.mark.parametrize("family", FAMILIES)
def test_removal_leaves_nothing(family, request):
    model, batch = get_model(family), ragged_batch(family)
    request.addfinalizer(lambda: remove_pruning(model))  # other tests share the model, whatever fails here
    generate(model, batch.inputs, steps=1)  # transformers hangs hooks of its own on first use
    before, config = snapshot(model), copy.deepcopy(model.config.to_dict())
    assert apply_pruning(model, "divprune") is model
    assert snapshot(model) != before
    generate(model, batch.inputs, steps=2)
    deep = ["todre", ["divprune", "fastv"]] if family in PLAIN_FAMILIES else []
    for policy in ("random", "fopru", *deep, "recoverable"):
        apply_pruning(model, policy)  # replaces
        generate(model, batch.inputs, steps=2)
    assert remove_pruning(model) is model
    assert snapshot(model) == before
    assert model.config.to_dict() == config
    assert remove_pruning(model) is model  # again: nothing to do


def test_applying_twice_replaces():
    model, batch = get_model("llava"), ragged_batch("llava")
    apply_pruning(model, "divprune", 0.9)
    apply_pruning(model, "divprune", 0.5)
    generate(model, batch.inputs, steps=1)
    assert {r.n_after for r in pruning_report(model)} == {18}
    remove_pruning(model)
    with pytest.raises(ValueError, match="apply_pruning"):
        pruning_report(model)


def test_blocks_nest_and_restore():
    model = get_model("llava")
    with pruning(model, "divprune", 0.5) as same:
        assert same is model
        outer = snapshot(model)
        with pruning(model, "random", 0.25):
            assert snapshot(model) != outer
            generate(model, ragged_batch("llava").inputs, steps=1)
            assert {r.n_after for r in pruning_report(model)} == {9}
        generate(model, ragged_batch("llava").inputs, steps=1)
        assert {r.n_after for r in pruning_report(model)} == {18}
        with pytest.raises(RuntimeError, match="mine"), pruning(model, "grid"):
            raise RuntimeError("mine")
        assert pruning_report(model)
    with pytest.raises(ValueError, match="no pruning"):
        pruning_report(model)


def test_blocks_that_do_not_nest_raise():
    model = get_model("llava")
    outer, inner = pruning(model, "grid", 0.3), pruning(model, "divprune", 0.3)
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(RuntimeError, match="must nest"):
        outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    with pytest.raises(ValueError, match="no pruning"):
        pruning_report(model)
    with pruning(model, "grid", 0.3):  # and what is applied inside a block ends with it
        apply_pruning(model, "divprune", 0.5)
        remove_pruning(model)
        apply_pruning(model, "random", 0.5)
    with pytest.raises(ValueError, match="no pruning"):
        pruning_report(model)


def test_a_wrapper_of_somebody_elses_stays():
    model, batch = copy.deepcopy(get_model("llava")), ragged_batch("llava")
    calls = []
    original = model.model.get_image_features

    def theirs(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    functools.update_wrapper(theirs, original)
    model.model.get_image_features = theirs
    apply_pruning(model, "random", keep=0.5)
    model(**batch.inputs)
    assert calls
    remove_pruning(model)
    assert model.model.get_image_features is theirs


@pytest.mark.parametrize("before", [None, "grid"])
def test_attachment_is_all_or_nothing(before):
    """An attention module that cannot be tapped is met when most hooks hang already."""
    model, batch = copy.deepcopy(get_model("llava")), one_row()
    generate(model, batch.inputs)
    if before:
        apply_pruning(model, before, 0.4, budget="final")
    expected, hooks = generate(model, batch.inputs), snapshot(model)
    attention = text_of(model).layers[1].self_attn
    config = attention.__dict__.pop("config")
    with pytest.raises(AttributeError, match="config"):
        apply_pruning(model, ["divprune", "fastv"], 0.3)
    attention.config = config
    assert {k: v[0] for k, v in snapshot(model).items()} == {k: v[0] for k, v in hooks.items()}
    assert torch.equal(generate(model, batch.inputs).logits, expected.logits)
    with pruning(model, ["divprune", "fastv"], 0.3):
        assert generate(model, batch.inputs, steps=1)


@pytest.mark.parametrize("where", ["same thread", "another thread"])
def test_pruning_cannot_change_while_the_model_runs(where):
    """Hooks that go in the middle of a call would leave a cache without its layout."""
    model, batch = copy.deepcopy(get_model("llava")), one_row()
    refused = []

    def change():
        for attempt in (lambda: apply_pruning(model, "grid", 0.5), lambda: remove_pruning(model)):
            try:
                attempt()
            except RuntimeError as error:
                refused.append(str(error))

    def action():
        if where == "same thread":
            return change()
        thread = threading.Thread(target=change)
        thread.start()
        thread.join()

    with pruning(model, Calls(), 0.3, budget="final"):
        expected = generate(model, batch.inputs)
    apply_pruning(model, Calls(action), 0.3, budget="final")
    assert torch.equal(generate(model, batch.inputs).logits, expected.logits)
    assert len(refused) == 2
    assert all("while the model runs" in error for error in refused)
    apply_pruning(model, "grid", 0.5)  # between calls it can


def test_an_interrupted_call_does_not_hold_pruning_up():
    model, batch = copy.deepcopy(get_model("llava")), one_row()
    apply_pruning(model, "divprune", 0.3)

    def work():
        interrupt(model, text_of(model).layers[1], KeyboardInterrupt, lambda: generate(model, batch.inputs))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    work()
    remove_pruning(model)


def test_policies_may_change_between_the_steps_of_a_generation():
    """A decode step under another pruning goes on with what the cache holds, or says that it cannot."""
    model, batch = get_model("llava"), ragged_batch("llava")

    def turns(policies):
        inputs, mask = batch.inputs, batch.inputs["attention_mask"]
        logits = []
        with torch.no_grad():
            for policy in policies:
                with pruning(model, policy, 0.3, budget="final"):
                    out = model(**inputs, use_cache=True)
                logits.append(out.logits[:, -1])
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                inputs = dict(
                    input_ids=logits[-1].argmax(-1)[:, None], attention_mask=mask, past_key_values=out.past_key_values
                )
        return torch.stack(logits)

    assert torch.equal(turns(["grid"] * 3), turns(["grid", "divprune", "random"]))
    with pytest.raises(PrunedCacheError, match="decoder layer 2"):
        turns(["fastv", "grid"])
