"""Successive halving."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.eval.tune.ranking import Chain, halve

KEEPS = (0.9, 0.7, 0.5, 0.3, 0.1)


def chains(count):
    return [Chain(f"p{i}", tuple((i, keep) for keep in KEEPS)) for i in range(count)]


class Asked:
    """A source of eight groups of prompts: losses by a function of the setting, and keep ratios as costs."""

    ranking = (10,) * 8

    def __init__(self, loss):
        self.loss, self.calls = loss, []

    def ranked(self, setting, groups, exact):
        self.calls.append((setting, groups, exact))
        return np.full(10 * groups, self.loss(setting))

    def cost(self, setting):
        return setting[1]


def rank(frontiers, finalists):
    """Chains that lose nothing down to a keep each, and everything below it."""
    source = Asked(lambda setting: float(setting[1] < frontiers[setting[0]]))
    return halve(source, chains(len(frontiers)), 0.02, finalists), source.calls


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 1.0]), min_size=1, max_size=12), st.integers(1, 3))
def test_the_chains_with_the_cheapest_settings_win(frontiers, finalists):
    ranked, _ = rank(frontiers, finalists)
    cheapest = sorted(math.inf if frontier == 1 else frontier for frontier in frontiers)
    assert [each.cost for each in ranked[:finalists]] == cheapest[: min(finalists, len(frontiers))]
    for each in ranked:
        i = each.chain.settings[0][0]
        assert each.best == (None if frontiers[i] == 1 else (i, frontiers[i]))


def test_only_the_last_round_asks_everything_and_measures_exactly():
    _, calls = rank([0.1, 0.3, 0.5, 0.7, 0.9, 0.9, 0.9, 0.9], 2)
    assert list(dict.fromkeys(count for _, count, _ in calls)) == [2, 4, 8]
    assert all(exact == (count == 8) for _, count, exact in calls)
    assert {setting[0] for setting, count, _ in calls if count == 4} == {0, 1, 2, 3}
    assert {setting[0] for setting, count, _ in calls if count == 8} == {0, 1}


def test_of_chains_that_are_never_within_the_tolerance_those_that_lose_least_go_on():
    source = Asked(lambda setting: [0.5, 0.125, 0.25, 0.75][setting[0]])
    ranked = halve(source, chains(4), 0.02, 2)
    assert [each.chain.name for each in ranked] == ["p1", "p2"]
    assert [(each.best, each.cost, each.risk) for each in ranked] == [(None, math.inf, 0.125), (None, math.inf, 0.25)]


def test_without_time_the_chains_that_were_ranked_last_are_left():
    source = Asked(lambda setting: 0.0)
    ranked = halve(source, chains(8), 0.02, 2, go_on=lambda: len({setting[0] for setting, *_ in source.calls}) < 3)
    assert {each.chain.name for each in ranked} == {"p0", "p1", "p2"}
    assert {groups for _, groups, _ in source.calls} == {2}
