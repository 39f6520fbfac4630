"""Testing settings in a row."""

import numpy as np
import pytest

from tokenprune.eval.tune.risk import binomial_p, least_prompts, most_lost
from tokenprune.eval.tune.sequence import Goal, affordable_chains, run_chain

GOAL = Goal(0.02, 0.95)


class Asked:
    """Losses of settings by name, of four batches of 100; and what was asked."""

    BATCHES = (100,) * 4

    def __init__(self, **lost):
        self.lost, self.asked = lost, []

    def __call__(self, setting, batch):
        self.asked.append((setting, batch))
        values = np.zeros(100)
        values[: self.lost[setting][batch]] = 1
        return values


def run(asked, goal=GOAL, level=0.05, **kwargs):
    return run_chain(list(asked.lost), asked, asked.BATCHES, goal, level, **kwargs)


def test_settings_are_certified_up_to_the_first_that_does_not_pass():
    asked = Asked(a=(0, 0, 0, 0), b=(1, 0, 1, 0), c=(3, 3, 3, 3), d=(0, 0, 0, 0))
    tested = run(asked)
    assert [(each.setting, each.certified) for each in tested] == [("a", True), ("b", True), ("c", False)]
    assert tested[0].p == pytest.approx(0.98**400)
    assert tested[1].p == binomial_p(400, 2, 0.02)
    assert tested[1].risk == 2 / 400


def test_a_setting_that_cannot_pass_any_more_is_given_up():
    asked = Asked(a=(0, 0, 0, 0), b=(9, 0, 0, 0))
    tested = run(asked)
    assert asked.asked[4:] == [("b", 0)]
    assert (tested[1].p, tested[1].certified, len(tested[1].losses)) == (None, False, 100)


def test_a_first_setting_is_asked_everything_since_its_losses_say_how_many_prompts_would_do():
    (tested,) = run(Asked(a=(9, 0, 0, 0)))
    assert tested.risk == 9 / 400
    assert not tested.certified


@pytest.mark.parametrize("lost", range(9))
def test_giving_up_early_changes_no_verdict(lost):
    in_first = run(Asked(a=(0, 0, 0, 0), b=(lost, 0, 0, 0)))
    in_last = run(Asked(a=(0, 0, 0, 0), b=(0, 0, 0, lost)))
    assert in_first[1].certified == in_last[1].certified == (binomial_p(400, lost, 0.02) <= 0.05)


def test_without_time_nothing_more_is_certified():
    time = iter([True, False])
    tested = run(Asked(a=(0, 0, 0, 0), b=(0, 0, 0, 0)), go_on=lambda: next(time))
    assert [each.setting for each in tested] == ["a"]


def test_chains_share_the_confidence_only_where_that_costs_little():
    assert affordable_chains(200, GOAL, 3) == 2  # with three, not even a setting without losses would pass
    assert affordable_chains(250, GOAL, 3) == 1  # with two, none may be lost in place of one
    assert affordable_chains(5000, GOAL, 3) == 3
    assert affordable_chains(100, GOAL, 3) == 1
    for n in (183, 200, 400, 1000):
        count = affordable_chains(n, GOAL, 3)
        assert most_lost(n, 0.02, GOAL.level(count)) >= 0.9 * most_lost(n, 0.02, GOAL.level(1))
    assert least_prompts(0.02, GOAL.level(2)) == 183


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, float("nan"), True, "0.1", None])
@pytest.mark.parametrize("name", ["tolerance", "confidence"])
def test_a_goal_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name}=.* must be a number in \(0, 1\), for example 0\.\d+"):
        Goal(**{"tolerance": 0.02, "confidence": 0.95, name: value})
