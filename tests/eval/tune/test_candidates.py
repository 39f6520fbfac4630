"""Which settings `tune` tries, and in which order."""

import pytest

from tokenprune.eval.errors import CommandError
from tokenprune.eval.minivlm import load
from tokenprune.eval.tune.candidates import chains_of, describe


def test_budgets_of_each_input_are_a_chain_of_their_own():
    keeps, notes = [0.25, "energy:0.9", 0.5, "energy:0.98"], []
    chains = chains_of(load()[0], ["divprune", "fastv"], keeps, ["original"], notes.append)
    assert {chain.name: [describe(each) for each in chain.settings] for chain in chains} == {
        "divprune": ["divprune 0.5", "divprune 0.25"],
        "divprune, a budget for each input": ["divprune energy:0.98", "divprune energy:0.9"],
        "fastv": ["fastv 0.5"],
    }
    assert len(notes) == 1 and "acts at the decoder stage" in notes[0]


def test_ratios_and_numbers_have_no_order():
    with pytest.raises(CommandError, match="mixes ratios and numbers"):
        chains_of(load()[0], ["divprune"], [0.5, 16], ["original"])
