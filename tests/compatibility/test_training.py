"""Losses, gradients and what trainers feed."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch

from tokenprune import apply_pruning, pruning, pruning_report

from ..builders import IMAGE
from ..families import ENCODES_FIRST, get_model, one_row, text_of
from ..oracles import keep_mask
from ..patches import test_labels, test_packing
from .cells import area, hidden

AREA = "Training"
cell = area(AREA)


@cell("`labels`, gradients", "loss and gradients of the masked original")
def test_gradients(family):
    model, batch = copy.deepcopy(get_model(family)), one_row(family)
    labels = batch.inputs["input_ids"].masked_fill(batch.inputs["input_ids"] == IMAGE, -100)
    found = []
    for pruned in (True, False):
        model.zero_grad()
        if pruned:
            with pruning(model, "divprune", 0.3, positions="original"):
                loss = model(**batch.inputs, labels=labels, use_cache=False).loss
                kept = keep_mask(batch, pruning_report(model))
        else:
            # The last kept column before a gap predicts nothing in either.
            hide = labels.masked_fill(~kept, -100)
            with hidden(model, kept):
                logits = model(**batch.inputs, use_cache=False).logits
            short, targets = logits[:, kept[0]], hide[:, kept[0]].clone()
            targets[:, 0] = -100
            loss = torch.nn.functional.cross_entropy(short[0, :-1], targets[0, 1:])
        loss.backward()
        weight = text_of(model).layers[0].mlp.down_proj.weight
        found.append((float(loss), weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-6)


def same_gradients(family):
    model, batch = copy.deepcopy(get_model(family)).train(), one_row(family)
    labels = batch.inputs["input_ids"].masked_fill(batch.inputs["input_ids"] == IMAGE, -100)
    found = []
    apply_pruning(model, "divprune", 0.3)
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        loss = model(**batch.inputs, labels=labels, use_cache=False).loss
        loss.backward()
        found.append((float(loss), text_of(model).layers[0].mlp.down_proj.weight.grad.clone()))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1])


@cell(
    "gradient checkpointing",
    "same loss and gradients as without; policies of the decoder and encoder stage are refused under transformers 5.17 "
    "and older, `ipcv` under every version",
)
def test_checkpointing(family):
    model, batch = copy.deepcopy(get_model(family)).train(), one_row(family)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for policy in ("fastv", "tome", ["divprune", "fastv"]) if family == "llava" else ("fastv",):
        with pruning(model, policy, 0.4, budget="final"):
            refused = not ENCODES_FIRST and type(text_of(model).layers[0]).__call__ is not torch.nn.Module.__call__
            message = "gradient checkpointing under transformers"
            with pytest.raises(ValueError, match=message) if refused else contextlib.nullcontext():
                model(**batch.inputs, labels=batch.inputs["input_ids"], use_cache=False).loss.backward()
    if family == "llava" and ENCODES_FIRST:
        with pruning(model, "ipcv", 0.4), pytest.raises(ValueError, match="which gradient checkpointing runs twice"):
            model(**batch.inputs, use_cache=False)
    same_gradients(family)


@cell("`labels` by position, through PEFT", "as by keyword, wrapped, unwrapped and merged", families=("llava",))
def test_labels_through_peft(family):
    test_labels.test_labels_shrink_however_they_are_given()


@cell(
    "a loss outside the model (`compute_loss_func`, distillation)",
    "as inside, with `prune_labels(model, labels)`; without it torch complains of sizes, and a warning says why",
)
def test_loss_outside(family):
    test_labels.test_a_loss_outside_the_model_equals_the_one_inside(family, "grid")


@cell("left-padded prompts, right-padded completions (trl)", "each row's logits as of it alone")
def test_completions(family):
    test_packing.test_completions_padded_on_the_right_keep_their_places(family, "divprune")


@cell("samples packed into one row (`position_ids` that start again, `cu_seq_lens_q`)", "refused")
def test_packed(family):
    test_packing.test_packed_rows_are_refused(family, "grid")


@cell("heads that classify or rate (`...ForSequenceClassification`)", "refused", families=("gemma3",))
def test_classifiers(family):
    test_labels.test_heads_that_read_one_place_of_a_row_are_refused(family, "Gemma3ForSequenceClassification")
