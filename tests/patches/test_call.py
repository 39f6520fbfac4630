"""State of a call: interrupts, calls inside calls."""

import copy
import gc
import threading
import weakref
from functools import partial

import pytest
import torch

from tokenprune import apply_pruning, pruning, remove_pruning
from tokenprune.patches.call import _CALL

from ..builders import IMAGE
from ..families import Picture, get_model, make_batch, one_row, ragged_batch, text_of
from ..oracles import generate
from ..support.calls import ENDS, Calls, interrupt, loop, places


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
            with pruning(model, policy, 0.2, budget="final", positions=positions):
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


def test_the_next_prefill_forgets_calls_of_threads_that_died_in_one():
    """A compiled step is traced for no call in flight."""
    model, batch = get_model("llava"), one_row()
    with torch.no_grad(), pruning(model, "divprune", 0.2):
        calls = model.model._tokenprune.calls
        dies = partial(interrupt, model, text_of(model).layers[1], SystemExit, lambda: generate(model, batch.inputs))
        thread = threading.Thread(target=dies)
        thread.start()
        thread.join()
        assert calls.in_flight and not calls.any_running
        model(**batch.inputs)
        assert not calls.in_flight


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

    with pruning(model, Calls(), 0.3, budget="final"):
        expected = generate(model, batch.inputs)
    if other is not model:
        apply_pruning(other, ["grid", "fastv"], 0.3)
    with pruning(model, Calls(action), 0.3, budget="final"):
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
        with pruning(model, policy, 0.3, budget="final"):
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
    apply_pruning(model, policy, 0.3, budget="final")
    text_of(model)(inputs_embeds=model.get_input_embeddings()(batch.inputs["input_ids"]))
    assert _CALL.get() is None
    generate(model, batch.inputs)
    interrupt(model, text_of(model).layers[2], KeyboardInterrupt, partial(generate, model, batch.inputs))
    remove_pruning(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
