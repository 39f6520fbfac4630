"""Which settings `tune` tries, and in which order."""

import pytest

from tokenprune.eval.errors import CommandError
from tokenprune.eval.minivlm import load
from tokenprune.eval.setting import PruningSetting
from tokenprune.eval.tune import Options
from tokenprune.eval.tune.candidates import KEEPS, POLICIES, chains_of, describe


def test_budgets_of_each_input_are_a_chain_of_their_own():
    keeps, notes = [0.25, "energy:0.9", 0.5, "energy:0.98", "coverage:0.5", "coverage:0.75"], []
    chains = chains_of(load()[0], ["divprune", "fastv"], keeps, ["original"], notes.append)
    assert {chain.name: [describe(each) for each in chain.settings] for chain in chains} == {
        "divprune": ["divprune 0.5", "divprune 0.25"],
        "divprune, energy of each input": ["divprune energy:0.98", "divprune energy:0.9"],
        "divprune, coverage of each input": ["divprune coverage:0.75", "divprune coverage:0.5"],
        "fastv": ["fastv 0.5"],
    }
    assert len(notes) == 2 and all("acts at the decoder stage" in note for note in notes)


def test_counts_that_are_found_are_tried_unless_budgets_are_named():
    given, model, notes = Options(), load("qwen")[0], []
    chains = chains_of(model, given.candidates(), KEEPS, ["original"], notes.append)
    names = [chain.name for chain in chains]
    assert names[: len(POLICIES)] == list(POLICIES)
    assert names[len(POLICIES) :] == [
        "auto, energy of each input",
        "auto, coverage of each input",
        "divprune, energy of each input",
        "divprune, coverage of each input",
        "pixelprune:tau=0 to pixelprune:tau=2",
    ]
    assert notes == []
    assert describe(chains[-1].settings[-1]) == "pixelprune:tau=2"
    assert describe(PruningSetting("divprune")) == "divprune default"
    assert Options(keeps=(0.5,)).candidates() == POLICIES
    assert Options(policies=("grid",)).candidates() == ("grid",)


def test_where_the_encoder_takes_no_count_of_each_picture_none_is_tried():
    notes = []
    chains = chains_of(load()[0], Options().candidates(), [0.5], ["original"], notes.append)
    assert not any("pixelprune" in chain.name for chain in chains)
    (note,) = notes
    assert "keeps the same number of every picture" in note


def test_ratios_and_numbers_have_no_order():
    with pytest.raises(CommandError, match="mixes ratios and numbers"):
        chains_of(load()[0], ["divprune"], [0.5, 16], ["original"])
