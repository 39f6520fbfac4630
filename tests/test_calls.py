"""State of a call: interrupts, calls inside calls, attachment that fails, pruning that changes meanwhile."""

import copy
import gc
import pickle
import threading
import weakref
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from transformers import DynamicCache

from tokenprune import Policy, PrunedCacheError, Selection, apply_pruning, pruning, pruning_report, remove_pruning
from tokenprune.patches.call import _CALL

from .families import FAMILIES, IMAGE, Picture, get_model, make_batch, ragged_batch, text_of
from .oracles import generate
from .test_api import snapshot

ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError)


@dataclass
class Calls(Policy):
    """Keeps the first tokens, and does something else meanwhile."""

    action: object = field(default=lambda: None)

    def select(self, tokens, n_keep):
        self.action()
        return Selection(torch.arange(n_keep))


def one_row(family="llava", text=5, seed=0):
    return make_batch(family, [[3, Picture(FAMILIES[family].sizes[0]), text]], seed)


@torch.no_grad()
def loop(model, ids, steps=5):
    """Greedy decoding by hand, without a mask: logits of every step."""
    out = model(input_ids=ids, use_cache=True)
    logits = [out.logits[:, -1]]
    for _ in range(steps):
        out = model(input_ids=logits[-1].argmax(-1)[:, None], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[:, -1])
    return torch.stack(logits)


def places(model):
    """Modules at which a call may end early, from the outside in."""
    base = model.model
    tower = base.visual if hasattr(base, "visual") else base.vision_tower
    return {"tower": tower, "text": text_of(model), "layer": text_of(model).layers[1], "norm": text_of(model).norm}


def interrupt(model, module, end, call):
    def stop(*args):
        raise end("on purpose")

    handle = module.register_forward_pre_hook(stop)
    try:
        with pytest.raises(end):
            call()
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("family", "positions", "end"),
    [("llava", "original", end) for end in ENDS]
    + [(f, "compact", KeyboardInterrupt) for f in ("llava", "qwen2_5_vl", "gemma3")],
)
def test_an_interrupted_prefill_leaves_nothing_behind(family, positions, end):
    """Text goes on as on the stock model, by `generate` and by hand, wherever the call was stopped."""
    model, batch = get_model(family), one_row(family)
    text = make_batch(family, [[60]], 2).inputs
    stock = generate(model, text), loop(model, text["input_ids"])
    policy = "divprune" if family == "gemma3" else ["divprune", "fastv"]
    ways = [lambda: torch.equal(generate(model, text).logits, stock[0].logits)]
    if family != "qwen2_5_vl":  # which keeps the offset of the last prompt's positions on the model, pruned or not
        ways.append(lambda: torch.equal(loop(model, text["input_ids"]), stock[1]))
    for module in places(model).values():
        for again in ways:
            with pruning(model, policy, 0.2, positions=positions):
                expected = generate(model, batch.inputs)
                interrupt(model, module, end, lambda: generate(model, batch.inputs))
                assert again()
                assert torch.equal(generate(model, batch.inputs).logits, expected.logits)
    assert _CALL.get() is None


def test_a_text_model_called_alone_after_an_interrupt_is_the_stock_one():
    """The base model was stopped in its tower; its request must not be taken for that of the next call."""
    model, batch = get_model("llava"), one_row()
    embeds = model.get_input_embeddings()(batch.inputs["input_ids"]).detach()
    with torch.no_grad():
        expected = text_of(model)(inputs_embeds=embeds).last_hidden_state
        with pruning(model, "divprune", 0.2):
            interrupt(model, model.model.vision_tower, KeyboardInterrupt, lambda: model(**batch.inputs))
            assert torch.equal(text_of(model)(inputs_embeds=embeds).last_hidden_state, expected)


def test_labels_of_an_interrupted_call_are_not_those_of_the_next():
    model, batch = get_model("llava"), one_row()
    labels = batch.inputs["input_ids"]
    with torch.no_grad(), pruning(model, "divprune", 0.2):
        expected = model(**batch.inputs).logits
        interrupt(model, model.model, KeyboardInterrupt, lambda: model(**batch.inputs, labels=labels))
        assert torch.equal(model(**batch.inputs).logits, expected)
        assert torch.equal(model.model(**batch.inputs).last_hidden_state[:, -1], model_last(model, batch))


def model_last(model, batch):
    hidden = []
    handle = model.lm_head.register_forward_pre_hook(lambda m, a: hidden.append(a[0]))
    model(**batch.inputs)
    handle.remove()
    return hidden[0][:, -1]


@pytest.mark.parametrize("inner", ["itself", "another", "interrupted"])
def test_a_pruned_model_may_run_inside_a_policy(inner):
    """Of another model or of the same, and whether or not that call comes to its end."""
    model, batch = get_model("llava"), ragged_batch("llava")
    other = model if inner == "itself" else copy.deepcopy(model)
    depth = []

    def action():
        if len(depth) == 3:
            return
        depth.append(1)
        if inner == "interrupted":
            stop = lambda: generate(other, one_row().inputs)
            interrupt(other, text_of(other).layers[1], KeyboardInterrupt, stop)
        else:
            generate(other, one_row().inputs, steps=2)

    with pruning(model, Calls(), 0.3):
        expected = generate(model, batch.inputs)
    if other is not model:
        apply_pruning(other, ["grid", "fastv"], 0.3)
    with pruning(model, Calls(action), 0.3):
        assert torch.equal(generate(model, batch.inputs).logits, expected.logits)
    assert depth
    assert _CALL.get() is None


def test_a_pruned_model_may_run_inside_the_encoder_of_another():
    """What one hears of its encoder is not the other's."""
    model, batch = get_model("llava"), ragged_batch("llava")
    other = copy.deepcopy(model)
    apply_pruning(other, "fopru", 0.3)
    alone = generate(other, batch.inputs)
    for policy in ("visionzip", "tome"):
        with pruning(model, policy, 0.3):
            expected, inside = generate(model, batch.inputs), []
            handle = model.model.vision_tower.register_forward_pre_hook(
                lambda m, a, inside=inside: inside.append(generate(other, batch.inputs))
            )
            run = generate(model, batch.inputs)
            handle.remove()
        assert torch.equal(run.logits, expected.logits)
        assert torch.equal(inside[0].logits, alone.logits)


@pytest.mark.parametrize(
    ("inner", "where", "prepend"),
    [
        (inner, where, prepend)
        for inner in ("model", "model with labels", "base", "text model")
        for where in ("head", "base", "tower", "text", "layer")
        for prepend in (False, True)
        # The very module that is called next, before pruning's own hook on it: not to be told from the call itself.
        if (inner, where, prepend)
        not in (("base", "base", True), ("text model", "text", True), ("text model", "base", False))
    ],
)
def test_a_users_hook_may_run_the_same_model(inner, where, prepend):
    """With other inputs, in the middle of a call with labels: neither call is taken for a part of the other."""
    model = get_model("llava")
    p = Picture((24, 24))
    batch, other = make_batch("llava", [[3, p, 5], [9, p, 3]]), make_batch("llava", [[7, p, 9], [2, p, 9]], 1)
    labels = batch.inputs["input_ids"].masked_fill(batch.inputs["input_ids"] == IMAGE, -100)
    embeds = torch.randn(2, 80, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    runs = {
        "model": lambda: model(**other.inputs).logits,
        "model with labels": lambda: model(**other.inputs, labels=other.inputs["input_ids"]).loss,
        "base": lambda: model.model(**other.inputs).last_hidden_state,
        "text model": lambda: text_of(model)(inputs_embeds=embeds).last_hidden_state,
    }
    module = {"head": model, "base": model.model, **places(model)}[where]
    seen, busy = [], []

    def hook(*args):
        if not busy:
            busy.append(True)
            seen.append(runs[inner]())

    with torch.no_grad(), pruning(model, "grid", 0.3):
        expected, alone = model(**batch.inputs, labels=labels), runs[inner]()
        handle = module.register_forward_pre_hook(hook, prepend=prepend)
        out = model(**batch.inputs, labels=labels)
        handle.remove()
    assert torch.equal(seen[0], alone)
    assert out.loss == expected.loss
    assert torch.equal(out.logits, expected.logits)
    assert _CALL.get() is None


def test_a_hook_that_changes_the_sequence_is_told_so():
    """Placeholders were looked for in what the base model was fed before it."""
    model, batch = get_model("llava"), one_row()

    def pad(module, args, kwargs):
        longer = {k: torch.nn.functional.pad(kwargs[k], (3, 0)) for k in ("input_ids", "attention_mask")}
        return args, {**kwargs, **longer}

    with torch.no_grad(), pruning(model, "grid", 0.3):
        handle = model.model.register_forward_pre_hook(pad, with_kwargs=True)
        try:
            with pytest.raises(ValueError, match="something between them changes it"):
                model(**batch.inputs)
        finally:
            handle.remove()
        assert model(**batch.inputs)


def test_the_text_model_may_be_called_by_position():
    model, ids = get_model("llava"), make_batch("llava", [[7]]).inputs["input_ids"]
    with torch.no_grad():
        expected = text_of(model)(ids).last_hidden_state
        with pruning(model, "grid", 0.3):
            assert torch.equal(text_of(model)(ids).last_hidden_state, expected)


@pytest.mark.parametrize("policy", ["divprune", "fopru", "tome", ["divprune", "fastv"]])
def test_nothing_keeps_a_model_alive(policy):
    """Nor what an interrupted call, or the text model alone, has left."""
    model, batch = copy.deepcopy(get_model("llava")), one_row()
    apply_pruning(model, policy, 0.3)
    text_of(model)(inputs_embeds=model.get_input_embeddings()(batch.inputs["input_ids"]))
    assert _CALL.get() is None
    generate(model, batch.inputs)
    interrupt(model, text_of(model).layers[2], KeyboardInterrupt, partial(generate, model, batch.inputs))
    remove_pruning(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# ---------------------------------------------------------------- attachment


@pytest.mark.parametrize("before", [None, "grid"])
def test_attachment_is_all_or_nothing(before):
    """An attention module that cannot be tapped is met when most hooks hang already."""
    model, batch = copy.deepcopy(get_model("llava")), one_row()
    generate(model, batch.inputs)
    if before:
        apply_pruning(model, before, 0.4)
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


def test_budgets_that_grow_are_refused():
    model = get_model("llava")
    for policies, keep in ((["divprune", "fastv"], [0.1, 0.5]), (["fastv", "divprune"], [20, 10])):
        with pytest.raises(ValueError, match="grows: 'fastv' acts after 'divprune'"):
            apply_pruning(model, policies, keep)
    for keep in ([0.5, 4], [None, None], [0.5, None]):  # not to be compared
        with pruning(model, ["divprune", "fastv"], keep):
            pass


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

    with pruning(model, Calls(), 0.3):
        expected = generate(model, batch.inputs)
    apply_pruning(model, Calls(action), 0.3)
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
                with pruning(model, policy, 0.3):
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


# ---------------------------------------------------------------- copies, caches and processes


@pytest.mark.parametrize("policy", ["divprune", ["divprune", "fastv"]])
def test_a_cache_is_refused_by_a_copy_that_is_not_pruned(policy):
    model, batch = get_model("llava"), ragged_batch("llava")
    stock = copy.deepcopy(model)
    mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, 1), value=1)
    step = dict(input_ids=torch.full((4, 1), 7), attention_mask=mask)
    with torch.no_grad(), pruning(model, policy, 0.3):
        cache = model(**batch.inputs, use_cache=True).past_key_values
        expected = model(**step, past_key_values=copy.deepcopy(cache)).logits
        with pytest.raises(PrunedCacheError, match="read by one without pruning"):
            stock(**step, past_key_values=copy.deepcopy(cache))
        with pruning(stock, policy, 0.3):
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


def test_what_was_compiled_before_is_pruned_from_then_on():
    model, batch = copy.deepcopy(get_model("llava")), one_row()
    with torch.no_grad():
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager")
        stock = compiled(**batch.inputs, use_cache=False).logits
        apply_pruning(compiled, "divprune", 0.3)
        pruned = compiled(**batch.inputs, use_cache=False).logits
        assert pruned.shape[1] < stock.shape[1]
        assert torch.equal(pruned, model(**batch.inputs, use_cache=False).logits)
        remove_pruning(compiled)
        assert torch.equal(compiled(**batch.inputs, use_cache=False).logits, stock)
    torch._dynamo.reset()
