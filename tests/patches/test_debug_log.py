"""At level DEBUG every phase of a call says what it does, so that a wrong position id can be followed."""

import logging

import pytest

from tokenprune import pruning

from ..families import get_model, ragged_batch
from ..oracles import generate


def lines(caplog, family, policy, keep):
    batch = ragged_batch(family)
    with caplog.at_level(logging.DEBUG, logger="tokenprune"), pruning(get_model(family), policy, keep):
        generate(get_model(family), batch.inputs)
    return [(record.name.rpartition(".")[2], record.getMessage()) for record in caplog.records]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_each_phase_has_a_line(caplog, family):
    said = lines(caplog, family, "divprune", 0.5)
    phases = [name for name, _ in said]
    assert {"visual_inputs", "feature_tap", "vision_stage", "text_inputs"} <= set(phases)
    assert sum(message.startswith("prefill") for _, message in said) == 1
    steps = [message for _, message in said if message.startswith("continuation")]
    assert len(steps) > 1
    assert all("1 columns on a cache of" in step and "position ids from" in step for step in steps)


def test_lines_tell_numbers(caplog):
    said = dict(lines(caplog, "llava", ["tome", "fastv"], 0.5))
    assert said["encoder_stage"].startswith("encoder cut ")
    assert "of 36" in said["vision_stage"]
    assert said["decoder_stage"].startswith("decoder cut at layer 2: ")


def test_what_a_policy_reads_of_the_encoder_is_named(caplog):
    said = dict(lines(caplog, "llava", "visionzip", 0.5))
    assert "captured ['attention', 'features', 'keys']" in said["encoder_capture"]


def test_nothing_is_said_otherwise(caplog):
    with caplog.at_level(logging.INFO, logger="tokenprune"), pruning(get_model("llava"), "divprune", 0.5):
        generate(get_model("llava"), ragged_batch("llava").inputs)
    assert not [record for record in caplog.records if record.name.startswith("tokenprune")]
