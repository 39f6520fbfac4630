"""The time that choosing takes, in the report."""

import pytest

from tokenprune import pruning, pruning_report

from ..families import get_model, ragged_batch
from ..oracles import generate

STAGES = {
    "divprune": {"vision"},
    "fastv": {"decoder"},
    "todre": {"vision", "decoder"},
    "auto": {"vision", "decoder"},
    "tome": {"encoder"},
    "downsample": {"encoder"},
    "tome+divprune+pyramiddrop": {"encoder", "vision", "decoder"},
}


@pytest.mark.parametrize("policy", STAGES)
def test_every_stage_is_timed_and_told_apart(policy):
    model = get_model("llava")
    with pruning(model, policy.split("+"), 0.25, budget="final"):
        generate(model, ragged_batch("llava").inputs, steps=1)
        records = pruning_report(model)
    assert len(records) == 4
    for record in records:
        assert set(record.select_ms_by_stage) == STAGES[policy]
        assert all(ms > 0 for ms in record.select_ms_by_stage.values())
        assert record.select_ms == pytest.approx(sum(record.select_ms_by_stage.values()))


def test_nothing_is_timed_where_everything_stays():
    model = get_model("llava")
    with pruning(model, ["tome", "divprune", "fastv"], 1.0):
        generate(model, ragged_batch("llava").inputs, steps=1)
        records = pruning_report(model)
    assert records and all(record.select_ms == 0 and not record.select_ms_by_stage for record in records)
