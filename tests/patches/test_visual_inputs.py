"""What counts as a visual token: visible placeholders, and no newlines."""

import copy

import pytest
import torch

from tokenprune import pruning, pruning_report

from ..families import Batch, get_model, make_batch, picture, ragged_batch
from ..oracles import assert_same, deep_masked, generate, keep_mask, masked, upper_masks

STAGES = {
    "vision": ("divprune", 0.3),
    "decoder": ("fastv", 0.3),
    "two stages": (["grid", "vtw"], 0.5),
    "two budgets": (["divprune", "pyramiddrop"], [0.8, 0.4]),
    "auto": ("auto", 0.5),
}


def visible_only(batch, mask):
    """The batch with the visual inputs' columns that the mask shows."""
    visuals = [(row, [c for c in columns if mask[row, c]], kind) for row, columns, kind in batch.visuals]
    return Batch({**batch.inputs, "attention_mask": mask}, [v for v in visuals if v[1]])


def seen_by_layers(full, mask, records):
    """The report in terms of visible placeholders: each record's places among them."""
    order = sorted(full.visuals, key=lambda v: (v[0], v[1][0]))
    order = [v for v in order if mask[v[0], v[1]].any()]
    out = []
    for record, (row, columns, _) in zip(records, order, strict=True):
        rank = mask[row, columns].long().cumsum(0) - 1
        assert record.n_before == int(mask[row, columns].sum())
        assert all(mask[row, columns[i]] for i in record.indices)
        cuts = tuple(cut._replace(indices=rank[cut.indices].tolist()) for cut in record.cuts)
        out.append(copy.copy(record))
        vars(out[-1]).update(indices=rank[record.indices].tolist(), cuts=cuts)
    return out


@pytest.mark.parametrize("label", STAGES)
@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl"])  # stock Qwen-VL cannot number such rows
def test_placeholders_that_the_mask_hides_are_no_candidates(family, label):
    """A part of one picture, and a whole one, hidden as ablations do it: the oracle, and the report."""
    policy, keep = STAGES[label]
    model, p = get_model(family), picture(family)
    batch = make_batch(family, [[3, p, 2, p, 5], [9, p, 4], [2, p, 3]])
    mask = batch.inputs["attention_mask"].bool()
    (_, first, _), _, (row, third, _), (other, fourth, _) = sorted(batch.visuals, key=lambda v: (v[0], v[1][0]))
    mask[0, first[: len(first) // 2]] = False
    mask[row, third[::3]] = False
    mask[other, fourth] = False
    inputs = {**batch.inputs, "attention_mask": mask.long()}
    with pruning(model, policy, keep, budget="final"):
        run, records = generate(model, inputs), pruning_report(model)
    assert [r.sample for r in records] == [0, 0, 1]
    records = seen_by_layers(batch, mask, records)
    seen = visible_only(batch, mask)
    keep = keep_mask(seen, records)
    upper = upper_masks(seen, records)
    oracle = deep_masked(model, seen, keep, upper) if upper else masked(model, seen, keep)
    assert_same(run, oracle)


@pytest.mark.parametrize("seen", [1, 2, 8, 20])
def test_a_prompt_that_was_cut_off_in_its_picture(seen):
    """Right padding from inside the picture on: the row keeps something to attend to."""
    model = get_model("llava")
    batch = make_batch("llava", [[picture("llava"), 5]])
    mask = (torch.arange(batch.inputs["input_ids"].shape[1]) < seen).long()[None]
    with torch.no_grad(), pruning(model, "divprune", 0.25):
        logits = model(**{**batch.inputs, "attention_mask": mask}).logits
        records = pruning_report(model)
    assert sum(r.n_before for r in records) == max(0, seen - 1)  # a first token, then the picture
    assert logits.isfinite().all()
    n = 1 + sum(r.n_after for r in records) + mask.shape[1] - seen
    assert logits.shape[1] == n


def test_budgets_count_what_is_visible():
    model, batch = get_model("llava"), make_batch("llava", [[3, picture("llava"), 5]])
    mask = batch.inputs["attention_mask"].clone()
    columns = batch.visuals[0][1]
    mask[0, columns[:28]] = 0
    for keep, n in ((0.5, 4), (3, 3), (8, 8), (100, 8)):
        with torch.no_grad(), pruning(model, "divprune", keep):
            model(**{**batch.inputs, "attention_mask": mask})
            (record,) = pruning_report(model)
        assert (record.n_before, record.n_after) == (8, n)
        assert min(record.indices) >= 28


def test_newline_tokens_are_no_candidates():
    model, batch = get_model("llava_next"), ragged_batch("llava_next")
    with pruning(model, "divprune", 0.3):
        generate(model, batch.inputs, steps=1)
        for record in pruning_report(model):
            thumbnail, mosaic = record.grids
            width = mosaic[2] + 1
            start = thumbnail[1] * thumbnail[2]
            newlines = {start + y * width + width - 1 for y in range(mosaic[1])}
            assert record.n_before == start + mosaic[1] * width
            assert not newlines & set(record.indices)
    with pruning(model, "divprune", record.n_before - 2):  # more than there is picture
        generate(model, batch.inputs, steps=1)
        assert pruning_report(model)[-1].n_after == record.n_before - 2
