"""P-values and intervals against what can be enumerated."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tokenprune.eval.tune.risk import (
    binomial_p,
    hoeffding_bentkus_p,
    interval,
    least_prompts,
    most_lost,
    prompts_needed,
)

P_VALUES = {"binomial": binomial_p, "bounded": hoeffding_bentkus_p}
TOLERANCES = (0.01, 0.02, 0.1, 0.3)


def one_too_good(n, total, tolerance):
    """A wrong p-value: that of one loss less."""
    return binomial_p(n, total - 1, tolerance)


def wrong_rejections(p_value, n, tolerance, level):
    """The probability that losses of 0 or 1 whose risk is the tolerance are rejected, by enumeration."""
    lost = np.arange(n + 1)
    rejected = np.array([p_value(n, int(k), tolerance) <= level for k in lost])
    return float(stats.binom.pmf(lost, n, tolerance)[rejected].sum())


@pytest.mark.parametrize("name", P_VALUES)
@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("level", [0.05, 0.3])
def test_a_true_hypothesis_is_rejected_no_more_often_than_the_level(name, tolerance, level):
    assert all(wrong_rejections(P_VALUES[name], n, tolerance, level) <= level for n in (1, 20, 61, 200, 333))


def test_a_wrong_p_value_rejects_too_often():
    assert any(wrong_rejections(one_too_good, n, 0.1, 0.05) > 0.05 for n in (20, 61, 200, 333))


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(0, 1), min_size=2, max_size=3),
    weights=st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
    level=st.sampled_from([0.02, 0.1, 0.3]),
    n=st.integers(1, 12),
)
def test_bounded_losses_of_any_distribution_are_rejected_no_more_often_than_the_level(values, weights, level, n):
    """All outcomes of n losses that take two or three values, with their probabilities."""
    shares = np.array(weights[: len(values)]) / sum(weights[: len(values)])
    risk = float(shares @ values)
    if not 0 < risk < 1:
        return
    rejected = 0.0
    for counts in np.ndindex(*[n + 1] * len(values)):
        if sum(counts) == n and hoeffding_bentkus_p(n, float(np.dot(counts, values)), risk) <= level:
            rejected += float(stats.multinomial.pmf(counts, n, shares))
    assert rejected <= level + 1e-9


@pytest.mark.parametrize("p_value", P_VALUES.values(), ids=P_VALUES)
def test_a_p_value_grows_with_what_is_lost_and_shrinks_with_the_tolerance(p_value):
    by_total = [p_value(200, total, 0.05) for total in range(30)]
    assert by_total == sorted(by_total)
    by_tolerance = [p_value(200, 3, tolerance) for tolerance in (0.5, 0.1, 0.05, 0.02, 0.01)]
    assert by_tolerance == sorted(by_tolerance)
    assert p_value(0, 0, 0.05) == 1


def test_the_binomial_p_value_is_the_tail():
    tail = sum(math.comb(50, k) * 0.1**k * 0.9 ** (50 - k) for k in range(3))
    assert binomial_p(50, 2, 0.1) == pytest.approx(tail)


@pytest.mark.parametrize("p_value", P_VALUES.values(), ids=P_VALUES)
def test_fewest_prompts_are_those_of_a_setting_without_any_loss(p_value):
    n = least_prompts(0.02, 0.05)
    assert n == 149
    assert p_value(n, 0, 0.02) <= 0.05 < p_value(n - 1, 0, 0.02)


@pytest.mark.parametrize("n", [10, 149, 400, 1000])
def test_the_most_that_may_be_lost(n):
    most = most_lost(n, 0.02, 0.05)
    assert most < 0 or binomial_p(n, most, 0.02) <= 0.05
    assert binomial_p(n, most + 1, 0.02) > 0.05


@pytest.mark.parametrize("p_value", P_VALUES.values(), ids=P_VALUES)
@pytest.mark.parametrize("risk", [0, 0.003, 0.01, 0.019])
def test_so_many_prompts_are_needed_and_not_many_fewer(p_value, risk):
    n = prompts_needed(risk, 0.02, 0.05, p_value)
    assert p_value(n, math.ceil(risk * n - 1e-9), 0.02) <= 0.05
    fewer = int(n / 1.2) - 2
    assert p_value(fewer, math.ceil(risk * fewer - 1e-9), 0.02) > 0.05


def test_no_number_of_prompts_helps_above_the_tolerance():
    assert prompts_needed(0.02, 0.02, 0.05, binomial_p) is None
    assert prompts_needed(0.019999, 0.02, 0.05, binomial_p) is None


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("risk", [0.0, 0.02, 0.3, 1.0])
def test_an_interval_holds_the_risk_as_often_as_it_says(binary, risk):
    n, held = 60, 0.0
    for lost, share in enumerate(stats.binom.pmf(np.arange(n + 1), n, risk)):
        if share:
            low, high = interval([1.0] * lost + [0.0] * (n - lost), 0.9, binary)
            assert 0 <= low <= lost / n <= high <= 1
            held += share * (low <= risk <= high)
    assert held >= 0.9
