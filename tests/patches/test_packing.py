"""Packing of columns: padding on the right, samples in one row, masks that are ready-made."""

import pytest
import torch

from tokenprune import pruning, pruning_report

from ..families import BOTH, get_model, make_batch, one_row, picture, ragged_batch


def right_padded(batch, lengths):
    """The batch with so many tokens of text behind each row, right-padded to the longest."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    most, generator = max(lengths), torch.Generator().manual_seed(3)
    more = torch.randint(3, 89, (len(ids), most), generator=generator)
    real = torch.arange(most) < torch.tensor(lengths)[:, None]
    out = {
        **batch.inputs,
        "input_ids": torch.cat([ids, more * real], 1),
        "attention_mask": torch.cat([mask, real.long()], 1),
    }
    if "mm_token_type_ids" in out:
        out["mm_token_type_ids"] = torch.nn.functional.pad(out["mm_token_type_ids"], (0, most))
    return out


@pytest.mark.parametrize("policy", ["divprune", "fastv", ["divprune", "fastv"]])
@pytest.mark.parametrize("family", BOTH)
def test_completions_padded_on_the_right_keep_their_places(family, policy):
    """As trl feeds them: the last places hold each row's completion and its padding, whatever was pruned."""
    model, batch = get_model(family), ragged_batch(family)
    lengths = [6, 3, 5, 1]
    inputs, most = right_padded(batch, lengths), 6
    with torch.no_grad(), pruning(model, policy, 0.3, budget="final"):
        logits = model(**inputs, logits_to_keep=most + 1).logits
        full = model(**inputs).logits
    assert logits.shape[1] == most + 1
    torch.testing.assert_close(full[:, -most - 1 :], logits)
    for row, n in enumerate(lengths):  # each row on its own, with no padding behind it
        short = {k: v[:, : v.shape[1] - most + n] if v.shape[:2] == inputs["input_ids"].shape else v
                 for k, v in inputs.items()}  # fmt: skip
        with torch.no_grad(), pruning(model, policy, 0.3, budget="final"):
            alone = model(**short, logits_to_keep=n + 1).logits[row]
        torch.testing.assert_close(logits[row, : n + 1], alone, rtol=0, atol=1e-6)


def test_the_last_token_that_a_policy_asks_is_no_padding():
    """FastV ranks by the attention of a row's last token."""
    model, batch = get_model("llava"), make_batch("llava", [[3, picture("llava"), 5]] * 2)
    inputs = right_padded(batch, [4, 1])
    with torch.no_grad(), pruning(model, "fastv@final", 0.3):
        model(**inputs)
        indices = pruning_report(model)[1].deep_indices
        short = {k: v[:, :-3] if v.shape[:2] == inputs["input_ids"].shape else v for k, v in inputs.items()}
        model(**short)
        assert pruning_report(model)[1].deep_indices == indices


@pytest.mark.parametrize("policy", ["grid", "fastv"])
@pytest.mark.parametrize("family", BOTH)
def test_packed_rows_are_refused(family, policy):
    model = get_model(family)
    a, b = (make_batch(family, [[3, picture(family), n]], seed=n) for n in (4, 6))
    ids = torch.cat([a.inputs["input_ids"], b.inputs["input_ids"]], 1)
    along = torch.cat([torch.arange(x.inputs["input_ids"].shape[1]) for x in (a, b)])
    packed = {k: torch.cat([a.inputs[k], b.inputs[k]]) for k in a.inputs if "pixel" in k or "grid" in k}
    packed |= dict(input_ids=ids, position_ids=along[None] if family == "llava" else along.expand(4, 1, -1))
    length = ids.shape[1]
    with torch.no_grad():
        expected = model(**packed, use_cache=False).logits
        with pruning(model, policy, 1.0):
            assert torch.equal(model(**packed, use_cache=False).logits, expected)
        with pruning(model, policy, 0.3, budget="final"):
            with pytest.raises(ValueError, match="several samples packed into one row"):
                model(**packed, use_cache=False)
            model(**packed, use_cache=True)  # with a cache, transformers does not look for samples either
            borders = torch.tensor([0, length], dtype=torch.int32)
            with pytest.raises(ValueError, match="cu_seq_lens_q"):
                model(**{**packed, "position_ids": None}, use_cache=False, cu_seq_lens_q=borders)
            one = {k: v for k, v in a.inputs.items() if k != "attention_mask"}
            model(**one, use_cache=False)


def test_custom_4d_mask_is_refused():
    model, batch = get_model("llava"), one_row("llava")
    n = batch.inputs["input_ids"].shape[1]
    ready = {**batch.inputs, "attention_mask": torch.ones(1, 1, n, n, dtype=torch.bool).tril()}
    with pruning(model, "random", 0.3), pytest.raises(ValueError, match="2-D padding mask"):
        model(**ready)
    with torch.no_grad(), pruning(model, "random", 1.0):  # nothing leaves, and nobody has to read it
        logits = model(**ready).logits
    with torch.no_grad():
        assert torch.equal(model(**ready).logits, logits)
