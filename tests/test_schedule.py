"""When tokens leave inside a decoder."""

import math

import numpy as np
import pytest

from tokenprune import Schedule


def test_geometric_steps_are_pyramiddrops():
    schedule = Schedule((1 / 4, 1 / 2, 3 / 4))
    assert schedule.cuts(32) == {8: 0, 16: 1, 24: 2}
    assert [schedule.kept(i, 576, 72) for i in range(3)] == [288, 144, 72]


def test_counts_in_proportion_are_sparsevlms():
    schedule = Schedule((2 / 32, 6 / 32, 15 / 32), (303, 110, 36))
    assert schedule.cuts(32) == {2: 0, 6: 1, 15: 2}
    assert [schedule.kept(i, 576, 36) for i in range(3)] == [303, 110, 36]
    assert [schedule.kept(i, 576, 144) for i in range(3)] == [576, 440, 144]  # never more than there were


def test_cuts_on_one_layer_are_the_last_of_them():
    assert Schedule((1 / 4, 1 / 2, 3 / 4)).cuts(3, lowest=2) == {2: 2}
    assert Schedule((0.1, 0.9)).cuts(4) == {1: 0, 3: 1}


def test_the_last_cut_meets_the_budget_whatever_came_before():
    schedule = Schedule((0.2, 0.6))
    for n in range(1, 30):
        for k in range(1, n + 1):
            first, last = schedule.kept(0, n, k), schedule.kept(1, n, k)
            assert n >= first >= last == k


@pytest.mark.parametrize(
    ("depths", "counts", "named"),
    [((), None, "depths"), ((0.5, 0.2), None, "depths"), ((0.0,), None, "depths"), ((1.0,), None, "depths")]
    + [((0.5, 0.5), None, "depths"), ((0.2, 0.5), (3,), "counts"), ((0.2, 0.5), (1, 3), "counts")]
    + [((0.2, 0.5), (1, 0), "counts")],
)
def test_bad_schedules(depths, counts, named):
    with pytest.raises(ValueError, match=f"{named}="):
        Schedule(depths, counts)


@pytest.mark.parametrize("counts", [3, "3", (3, math.nan), (3, True), (3, None), (3, 0), (1, 3), (3,), {3: 1}, (3, -1)])
def test_counts_of_a_schedule(counts):
    with pytest.raises(ValueError, match=r"^counts="):
        Schedule((0.2, 0.5), counts)


@pytest.mark.parametrize(
    "depths", [0.5, "0.5", None, (None,), (math.nan,), (True,), ("0.5",), {0.5: 1}, (0.2, math.nan)]
)
def test_depths_of_a_schedule(depths):
    with pytest.raises(ValueError, match=r"^depths=.*shares of the layers, in \(0, 1\), ascending"):
        Schedule(depths)


def test_a_schedule_from_lists():
    assert Schedule([0.2, np.float64(0.5)], [3, 3]) == Schedule((0.2, 0.5), (3, 3))
