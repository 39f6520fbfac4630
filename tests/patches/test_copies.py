"""Copies of pruned models: deep, saved, pickled, replicated; and caches on another model."""

import copy
import pickle

import pytest
import torch
from transformers import DynamicCache

from tokenprune import PrunedCacheError, apply_pruning, pruning, pruning_report, remove_pruning

from ..families import FAMILIES, get_model, one_row, ragged_batch, text_of
from ..oracles import generate
from ..support.calls import interrupt
from ..support.snapshot import snapshot


@pytest.mark.parametrize("policy", ["random", "fopru", "todre", ["divprune", "fastv"]])
def test_a_deep_copy_is_pruned_on_its_own(policy):
    model, batch = get_model("llava"), ragged_batch("llava")
    stock = generate(model, batch.inputs)
    with pruning(model, policy, 0.3, budget="final"):
        pruned = generate(model, batch.inputs)
        twin = copy.deepcopy(model)
    assert torch.equal(generate(twin, batch.inputs).logits, pruned.logits)
    assert pruning_report(twin)
    remove_pruning(twin)
    assert torch.equal(generate(twin, batch.inputs).logits, stock.logits)
    hooks = lambda m: {k: (v[0], v[3]) for k, v in snapshot(m).items()}
    assert hooks(twin) == hooks(model)


def test_saving_a_pruned_model_saves_the_stock_model(tmp_path):
    model = get_model("llava")
    with pruning(model, "todre", 0.3):
        model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
    again.generation_config.eos_token_id = None
    batch = ragged_batch("llava")
    assert torch.equal(generate(again, batch.inputs).logits, generate(model, batch.inputs).logits)


@pytest.mark.parametrize("policy", ["divprune", ["divprune", "fastv"]])
def test_a_cache_is_refused_by_a_copy_that_is_not_pruned(policy):
    model, batch = get_model("llava"), ragged_batch("llava")
    stock = copy.deepcopy(model)
    mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, 1), value=1)
    step = dict(input_ids=torch.full((4, 1), 7), attention_mask=mask)
    with torch.no_grad(), pruning(model, policy, 0.3, budget="final"):
        cache = model(**batch.inputs, use_cache=True).past_key_values
        expected = model(**step, past_key_values=copy.deepcopy(cache)).logits
        with pytest.raises(PrunedCacheError, match="read by one without pruning"):
            stock(**step, past_key_values=copy.deepcopy(cache))
        with pruning(stock, policy, 0.3, budget="final"):
            assert torch.equal(stock(**step, past_key_values=copy.deepcopy(cache)).logits, expected)
        assert torch.equal(model(**step, past_key_values=cache).logits, expected)


def test_a_cache_is_refused_by_a_copy_after_an_interrupted_step_as_well():
    model, batch = get_model("llava"), ragged_batch("llava")
    stock = copy.deepcopy(model)
    mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, 1), value=1)
    step = dict(input_ids=torch.full((4, 1), 7), attention_mask=mask)
    with torch.no_grad(), pruning(model, "divprune", 0.3):
        cache = model(**batch.inputs, use_cache=True).past_key_values
        interrupt(model, text_of(model).layers[0], KeyboardInterrupt, lambda: model(**step, past_key_values=cache))
        for each in (copy.deepcopy(cache), cache):
            with pytest.raises(PrunedCacheError, match="read by one without pruning"):
                stock(**step, past_key_values=each)


def test_a_cache_that_nothing_was_pruned_from_may_go_anywhere():
    model, batch = get_model("llava"), ragged_batch("llava")
    step = dict(input_ids=torch.full((4, 1), 7))
    with torch.no_grad():
        with pruning(model, "divprune", 1.0):
            cache = model(**batch.inputs, use_cache=True).past_key_values
        assert type(cache) is DynamicCache
        copy.deepcopy(model)(**step, past_key_values=cache)


def test_what_is_pruned_cannot_be_pickled_and_says_so():
    with torch.no_grad(), pruning(get_model("llava"), "divprune", 0.3):
        cache = get_model("llava")(**one_row().inputs, use_cache=True).past_key_values
    model = FAMILIES["llava"].build()  # transformers hangs hooks that cannot be pickled on a model that has run
    apply_pruning(model, ["tome", "cdpruner", "fastv"], 0.3)
    for part in (model, model.model, text_of(model), text_of(model).layers[2], model.model.vision_tower):
        with pytest.raises(pickle.PicklingError, match=r"remove_pruning\(model\)"):
            pickle.dumps(part)
    with pytest.raises(pickle.PicklingError, match=r"KV cache of a pruned model.*remove_pruning\(model\)"):
        pickle.dumps(cache)
    remove_pruning(model)
    assert pickle.loads(pickle.dumps(model)).config == model.config


def test_replicas_are_refused():
    """As nn.DataParallel makes them: other modules that share their hooks with the original."""
    model, batch = copy.deepcopy(get_model("llava")), one_row()
    apply_pruning(model, "divprune", 0.3)
    modules = list(model.modules())
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    for module, twin in copies.items():
        twin._modules = {name: None if child is None else copies[child] for name, child in module._modules.items()}
        for name, parameter in module._parameters.items():
            setattr(twin, name, None if parameter is None else parameter.detach())
    for call in (copies[model], copies[model.model]):
        with pytest.raises(RuntimeError, match="DataParallel"):
            call(**batch.inputs)
    assert generate(model, batch.inputs)
