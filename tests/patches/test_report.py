"""The report of a prefill and the status of a model, as users read them."""

import copy
from datetime import datetime, timedelta

import pytest
import torch
from torch import nn

from tokenprune import apply_pruning, pruning, pruning_report, pruning_status, remove_pruning
from tokenprune.budget import Budget
from tokenprune.patches import Cut, PruningReport, Record
from tokenprune.policies import DivPrune, FastV, registry
from tokenprune.policies.stages import Stage

from ..families import FAMILIES, get_model, ragged_batch
from ..policies_table import DEEP


def _record(sample=0, visual=0, kept=4, cuts=(), n_layers=3):
    return Record(sample, visual, "image", 9, kept, list(range(kept)), None, None, 1.25, cuts=cuts, n_layers=n_layers)


def _run(model, batch, policy, keep, **options):
    with torch.no_grad(), pruning(model, policy, keep, budget="final", **options):
        model(**batch.inputs)
        return pruning_report(model)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_record_knows_how_many_layers_hold_its_tokens(name):
    model, batch = get_model(name), ragged_batch(name)
    layers = model.config.get_text_config().num_hidden_layers
    for record in _run(model, batch, "random", 0.3):
        assert record.n_layers == layers == len(record.tokens_per_layer)
        assert set(record.tokens_per_layer) == {record.n_after} == {record.n_last} == {record.mean}


@pytest.mark.parametrize("label", DEEP)
def test_the_mean_counts_layers_below_a_cut(label):
    model, batch, (policy, options) = get_model("llava"), ragged_batch("llava"), DEEP[label]
    records = _run(model, batch, policy, 0.3, **options)
    assert any(record.cuts for record in records)
    for record in records:
        expected, held = [], record.n_after
        cuts = {cut.layer: len(cut.indices) for cut in record.cuts}
        for layer in range(record.n_layers):
            held = cuts.get(layer, held)
            expected.append(held)
        assert list(record.tokens_per_layer) == expected
        assert record.mean == sum(expected) / len(expected) == record.mean_tokens(record.n_layers)
        assert record.n_last == expected[-1]


def test_a_record_without_layers():
    record = _record(n_layers=None)
    assert record.mean == record.n_last == 4
    with pytest.raises(ValueError, match="no n_layers"):
        record.tokens_per_layer  # noqa: B018
    cut = _record(cuts=(Cut(1, [0]),), n_layers=None)
    with pytest.raises(ValueError, match="no n_layers"):
        cut.mean  # noqa: B018
    assert cut.mean_tokens(2) == 2.5
    assert "image" in PruningReport([cut]).summary()


def test_a_report_is_a_list():
    records = [_record(0), _record(1)]
    report = PruningReport(records)
    assert report == records and records == report and list(report) == records
    assert report[1] is records[1] and report[:1] == records[:1] and len(report) == 2
    assert copy.copy(report) == records and PruningReport() == [] and not PruningReport()


def test_the_summary_is_a_table():
    cut = _record(1, 2, kept=6, cuts=(Cut(1, [0, 1, 2]),))
    report = PruningReport([_record(), cut])
    assert str(report) == report.summary()
    assert report.summary().splitlines() == [
        "sample  input   kind  before  after  mean  last  select ms",
        "     0      0  image       9      4   4.0     4       1.25",
        "     1      2  image       9      6   4.0     3       1.25",
        "   all      2             18     10   8.0     7       2.50",
    ]
    assert repr(report) == "<PruningReport of 2 visual inputs, 10 of 18 tokens kept>"
    assert repr(PruningReport([cut])) == "<PruningReport of 1 visual input, 6 of 9 tokens kept>"
    assert len(PruningReport([cut]).summary().splitlines()) == 2  # one line needs no sum
    assert "has not run yet" in PruningReport().summary()


def test_a_long_summary_is_cut():
    lines = PruningReport([_record(i) for i in range(64)]).summary().splitlines()
    assert len(lines) == 1 + 20 + 1 + 1
    assert lines[-2] == "... and 44 more"
    assert lines[-1].split() == ["all", "64", "576", "256", "256.0", "256", "80.00"]


def test_a_report_is_of_its_time():
    model, batch = get_model("llava"), ragged_batch("llava")
    with torch.no_grad(), pruning(model, "random", 0.3):
        empty = pruning_report(model)
        model(**batch.inputs)
        assert empty == [] and len(pruning_report(model)) == 4


def test_an_unpruned_model_has_no_status():
    assert pruning_status(get_model("llava")) is None
    assert pruning_status(nn.Linear(2, 2)) is None


def test_the_status_of_a_pruned_model():
    model, before = get_model("llava"), repr(get_model("llava"))
    start = datetime.now().astimezone()
    with pruning(model, ["divprune", FastV(layer=1)], 0.25, budget="final", positions="compact"):
        assert repr(model) == before
        status = pruning_status(model)
        assert status == pruning_status(model.model)
        assert status.model_type == "llava" and status.positions == "compact"
        assert [str(each.stage) for each in status.stages] == ["vision", "decoder"]
        assert status.policies == (DivPrune(), FastV(layer=1))
        assert status.stages[1].budget == Budget(0.25)
        assert timedelta(0) <= status.since - start < timedelta(hours=1)
        assert str(status).splitlines() == [
            f"llava, pruned since {status.since:%Y-%m-%d %H:%M:%S}, compact positions",
            "  vision stage: DivPrune() keeps 0.5 of the tokens",
            "  decoder stage: FastV(layer=1) keeps 0.25 of the tokens",
        ]
        with pruning(model, "random", 8):
            inner = pruning_status(model)
            assert str(inner).endswith("  vision stage: Random(seed=0) keeps 8 tokens")
            assert inner.since >= status.since
        assert pruning_status(model) == status  # that of the outer block again
    assert pruning_status(model) is None


def test_a_model_of_which_the_family_decides():
    model = apply_pruning(get_model("llava"), "fastv")
    try:
        assert "keeps 0.25 of the tokens" in str(pruning_status(model))
    finally:
        remove_pruning(model)


@pytest.mark.parametrize("name", sorted(registry()))
def test_every_policy_has_a_status_in_words(name):
    model = get_model("mistral3" if Stage.PIXELS in registry()[name]().stages else "llava")
    for keep in (None, 0.5, 8):
        with pruning(model, name, keep, budget="final"):
            text = str(pruning_status(model))
            assert type(registry()[name]()).__name__ in text
            assert "Budget(" not in text
