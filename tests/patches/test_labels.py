"""The head: labels and losses, inside the model and outside of it."""

import copy
import inspect
import logging
import tempfile

import pytest
import torch
import transformers

from tokenprune import (
    UnsupportedModelError,
    apply_pruning,
    expand_logits,
    prune_labels,
    pruning,
    pruning_report,
    remove_pruning,
)

from ..builders import IMAGE
from ..families import BOTH, CASES, get_model, make_batch, picture, ragged_batch, text_of
from ..oracles import keep_mask, text_inputs


def supervised(family):
    batch = ragged_batch(family)
    labels = batch.inputs["input_ids"].masked_fill(batch.inputs["attention_mask"] == 0, -100)
    return batch, labels.masked_fill(labels == IMAGE, -100)


#: Before transformers 5.24 the head of Omni's thinker is its base model as well.
LOSSES = [(family, policy) for family in BOTH for policy in ("grid", "fastv", ["grid", "fastv"])]


@pytest.mark.parametrize(("family", "policy"), [*LOSSES, ("qwen2_5_omni_thinker", ["grid", "fastv"])])
def test_a_loss_outside_the_model_equals_the_one_inside(family, policy):
    model = get_model(family)
    batch, labels = supervised(family)
    with torch.no_grad(), pruning(model, policy, 0.3, budget="final"):
        expected = model(**batch.inputs, labels=labels).loss
        logits = model(**batch.inputs).logits
        short = prune_labels(model, labels)
        assert short.shape == logits.shape[:2]
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), short[:, 1:].flatten())
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
        wide = expand_logits(model, logits, fill=-1.0)
        assert wide.shape[:2] == labels.shape
        assert torch.equal(wide[:, -1], logits[:, -1])
        held = (wide != -1).any(-1)
        for row in range(len(labels)):  # in the order of the prompt
            assert torch.equal(wide[row, held[row]], logits[row, logits.shape[1] - int(held[row].sum()) :])
        with pytest.raises(ValueError, match="labels are 3 long"):
            prune_labels(model, labels[:, :3])
        with pytest.raises(ValueError, match="logits have 3 places"):
            expand_logits(model, logits[:, :3])
        failing = text_of(model).layers[0].register_forward_pre_hook(stop)
        with pytest.raises(RuntimeError, match="on purpose"):
            model(**make_batch(family, [[3, picture(family), 40]] * 4, 9).inputs)
        failing.remove()
        assert torch.equal(prune_labels(model, labels), short)  # a failed call is not the last
        text = make_batch(family, [[5], [5]]).inputs
        model(**text)
        assert prune_labels(model, text["input_ids"]) is text["input_ids"]
    with pytest.raises(ValueError, match="no pruning"):
        prune_labels(model, labels)


def stop(*args):
    raise RuntimeError("on purpose")


def test_labels_shrink_however_they_are_given():
    """By position, through PEFT applied before or after, merged or unwrapped."""
    peft = pytest.importorskip("peft")
    batch, labels = supervised("llava")
    stock = copy.deepcopy(get_model("llava"))
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    with torch.no_grad():
        with pruning(stock, "divprune", 0.3):
            expected = stock(**batch.inputs, labels=labels).loss.item()
            names = list(inspect.signature(stock.forward).parameters)
            by_place = [batch.inputs.get(name) for name in names[: names.index("labels")]] + [labels]
            assert stock(*by_place).loss.item() == expected
        before = copy.deepcopy(stock)
        wrapped = peft.get_peft_model(copy.deepcopy(stock), config)  # without a task type it takes anything by position
        apply_pruning(wrapped, "divprune", 0.3)
        assert wrapped(*by_place).loss.item() == pytest.approx(expected)
        assert wrapped(*by_place[:-1], labels=labels).loss.item() == pytest.approx(expected)
        wrapped = peft.get_peft_model(before, config)
        apply_pruning(wrapped, "divprune", 0.3)
        assert wrapped(**batch.inputs, labels=labels).loss.item() == pytest.approx(expected)
        assert wrapped.get_base_model()(**batch.inputs, labels=labels).loss.item() == pytest.approx(expected)
        merged = wrapped.merge_and_unload()
        assert merged(**batch.inputs, labels=labels).loss.item() == pytest.approx(expected)
        remove_pruning(merged)
        after = apply_pruning(copy.deepcopy(stock), "divprune", 0.3)
        wrapped = peft.get_peft_model(after, config)
        assert wrapped(**batch.inputs, labels=labels).loss.item() == pytest.approx(expected)


def test_labels_above_a_base_model_that_alone_is_pruned_are_refused():
    model = get_model("llava")
    batch, labels = supervised("llava")
    with torch.no_grad(), pruning(model.model, "divprune", 0.3):
        hidden = model.model(**batch.inputs).last_hidden_state
        assert model(**batch.inputs).logits.shape[1] == hidden.shape[1] < labels.shape[1]
        with pytest.raises(ValueError, match="on the whole model"):
            model(**batch.inputs, labels=labels)


def test_a_trainer_whose_loss_is_its_own(caplog):
    """Label smoothing outside the model: what `Trainer` calls `compute_loss_func`, with the labels shrunk."""
    pytest.importorskip("accelerate")
    model = copy.deepcopy(get_model("llava")).float()
    batch, labels = supervised("llava")
    rows = [
        dict(input_ids=batch.inputs["input_ids"][0], attention_mask=batch.inputs["attention_mask"][0],
             pixel_values=batch.inputs["pixel_values"][0].float(), labels=labels[0])
    ] * 2  # fmt: skip
    losses = []

    def loss(outputs, labels, **kwargs):
        logits = outputs.logits
        if logits.shape[1] != labels.shape[1]:
            labels = prune_labels(model, labels)
        losses.append(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))
        return losses[-1]

    apply_pruning(model, "divprune", 0.3)
    with tempfile.TemporaryDirectory() as folder, caplog.at_level(logging.WARNING, "tokenprune"):
        options = transformers.TrainingArguments(
            folder, max_steps=2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
            per_device_train_batch_size=2, learning_rate=0.0,
        )  # fmt: skip
        transformers.Trainer(model, options, train_dataset=rows, compute_loss_func=loss).train()
    assert len(losses) == 2
    assert all(x.isfinite() for x in losses)
    assert caplog.text.count("prune_labels") == 1  # said once
    with tempfile.TemporaryDirectory() as folder:
        options = transformers.TrainingArguments(
            folder, max_steps=1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
            per_device_train_batch_size=2, label_smoothing_factor=0.1,
        )  # fmt: skip
        with pytest.raises(ValueError, match="compute_loss_func that calls"):
            transformers.Trainer(model, options, train_dataset=rows).train()


HEADS = [
    ("gemma3", "Gemma3ForSequenceClassification"),
    ("qwen3_5", "Qwen3_5ForSequenceClassification"),
    ("qwen3_5", "Qwen3_5ForTokenClassification"),
]


@pytest.mark.parametrize(("family", "name"), [head for head in HEADS if hasattr(transformers, head[1])])
def test_heads_that_read_one_place_of_a_row_are_refused(family, name):
    model = getattr(transformers, name)(copy.deepcopy(get_model(family).config))
    with pytest.raises(UnsupportedModelError, match=f"{name} is not supported"):
        apply_pruning(model, "divprune")
    assert apply_pruning(model.model, "divprune") is model.model  # its base model gives what is left
    remove_pruning(model.model)


def test_a_class_that_wraps_a_model_is_refused_and_the_model_in_it_is_not():
    if "shieldgemma2" not in CASES:
        pytest.skip("this transformers has no such class")
    config = copy.deepcopy(get_model("shieldgemma2").config)
    config._attn_implementation = "eager"  # older transformers know no other for this class
    model = transformers.ShieldGemma2ForImageClassification(config)
    with pytest.raises(UnsupportedModelError, match=r"ShieldGemma2ForImageClassification .* prune the model inside"):
        apply_pruning(model, "divprune")
    assert apply_pruning(model.model, "divprune") is model.model
    remove_pruning(model.model)


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
