"""The head: `logits_to_keep`, and prefill in chunks."""

import copy

import pytest
import torch

from tokenprune import pruning, pruning_report

from ..families import CASES, ENCODES_FIRST, get_model, make_batch, picture, ragged_batch
from ..oracles import assert_same, generate, keep_mask

GEMMA_4 = [name for name in CASES if name.startswith("gemma4")]  # whose head compares lengths


@pytest.mark.parametrize(
    ("family", "policy"),
    [("llava", "grid"), ("llava", "fastv"), ("llava", ["grid", "fastv"]), *((name, "grid") for name in GEMMA_4)],
)
def test_logits_to_keep_names_places_of_the_prompt(family, policy):
    model, batch = get_model(family), make_batch(family, [[3, picture(family), 6]])
    length = batch.inputs["input_ids"].shape[1]
    text, last = [0, 2, length - 6, length - 1], torch.tensor([-1, -4])
    with torch.no_grad(), pruning(model, policy, 0.25, budget="final"):
        full = model(**batch.inputs).logits
        kept = keep_mask(batch, pruning_report(model))
        for record in pruning_report(model):
            for cut in record.cuts:
                kept[0, batch.visuals[0][1]] = False
                kept[0, torch.tensor(batch.visuals[0][1])[cut.indices]] = True
        rank = kept[0].long().cumsum(0) - 1
        for places in (torch.tensor(text), last, torch.tensor([length - 1])):
            wanted = places % length
            out = model(**batch.inputs, logits_to_keep=places).logits
            torch.testing.assert_close(out, full[:, rank[wanted]])
        as_mask = torch.zeros(length, dtype=torch.bool)
        as_mask[text] = True
        torch.testing.assert_close(model(**batch.inputs, logits_to_keep=as_mask).logits, full[:, rank[text]])
        gone = int((~kept[0]).nonzero()[0])
        with pytest.raises(ValueError, match="logits_to_keep"):
            model(**batch.inputs, logits_to_keep=torch.tensor([gone]))
        for n in (1, 3, 7, 20, length):  # as many of the last so many as are left
            out = model(**batch.inputs, logits_to_keep=n).logits
            torch.testing.assert_close(out, full[:, -int(kept[0, -n:].sum()) :])
    with torch.no_grad():
        everything = model(**batch.inputs).logits
        with pruning(model, policy, 1.0):
            for wanted in (torch.tensor(text), 7):
                chosen = everything[:, wanted] if isinstance(wanted, torch.Tensor) else everything[:, -wanted:]
                torch.testing.assert_close(model(**batch.inputs, logits_to_keep=wanted).logits, chosen)


def test_logits_to_keep_may_be_a_list_a_range_or_a_slice():
    model, batch = get_model("llava"), make_batch("llava", [[3, picture("llava"), 6]])
    length = batch.inputs["input_ids"].shape[1]
    with torch.no_grad(), pruning(model, "grid", 0.25):
        full = model(**batch.inputs).logits
        for wanted in (
            [length - 3, length - 1],
            range(length - 4, length),
            slice(-4, None),
            slice(-5, None, 2),
        ):
            places = torch.tensor(list(range(length)[wanted] if isinstance(wanted, slice) else wanted))
            out = model(**batch.inputs, logits_to_keep=wanted).logits
            torch.testing.assert_close(out, full[:, places - length])
        with pytest.raises(ValueError, match="logits_to_keep"):
            model(**batch.inputs, logits_to_keep=slice(0, length))


def test_places_that_differ_from_row_to_row_are_refused():
    model, batch = get_model("llava"), ragged_batch("llava")
    length = batch.inputs["input_ids"].shape[1]
    with torch.no_grad(), pruning(model, "grid", 0.3):
        with pytest.raises(ValueError, match=r"logits_to_keep=\[20\]"):
            model(**batch.inputs, logits_to_keep=torch.tensor([20]))
        model(**batch.inputs, logits_to_keep=torch.tensor([length - 1]))  # the end is the end of every row


@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers feeds no pictures in chunks")
@pytest.mark.parametrize("policy", ["divprune", "fopru", "fastv"])
def test_prefill_in_chunks_is_refused(policy):
    model, batch = get_model("llava"), make_batch("llava", [[3, picture("llava"), 5]])
    inputs = {"prefill_chunk_size": 16}
    expected = generate(model, batch.inputs, **inputs)
    text = make_batch("llava", [[40]]).inputs
    with pruning(model, policy, 0.3, budget="final"):
        for size in (16, 1000):
            with pytest.raises(ValueError, match=f"prefill_chunk_size={size}"):
                generate(model, batch.inputs, prefill_chunk_size=size)
        twin = copy.deepcopy(model)
        assert generate(model, text, **inputs)
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        generate(twin, batch.inputs, **inputs)
    with pruning(model, policy, 1.0):
        assert_same(generate(model, batch.inputs, **inputs), expected, atol=1e-9)
