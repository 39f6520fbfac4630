"""What losses of independent prompts say about their mean: p-values, intervals, and how many prompts are enough.

Losses are in [0, 1]. The risk is their mean over all prompts that could be asked. A p-value is that of the hypothesis
"the risk is above the tolerance": if it is true, the probability of a p-value of at most u is at most u.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

#: A p-value of the mean of so many losses, their sum and the tolerance.
PValue = Callable[[int, float, float], float]

_MOST_PROMPTS = 10**7  # beyond this, no number of prompts is named


def binomial_p(n: int, total: float, tolerance: float) -> float:
    """P-value of losses that are 0 or 1: the probability of at most as many ones if the risk is the tolerance.

    Args:
        n: number of losses.
        total: their sum.
        tolerance: in (0, 1).
    """
    return _at_most(math.floor(total + 1e-9), n, tolerance) if n else 1.0


def hoeffding_bentkus_p(n: int, total: float, tolerance: float) -> float:
    """P-value of losses in [0, 1]: the smaller of Hoeffding's and Bentkus's bounds (arXiv:2110.01052, section 3.1).

    With the mean m of the losses, it is min(exp(-n h(min(m, tolerance), tolerance)), e P(Bin(n, tolerance) <= ceil(n
    m))), where h(a, b) = a log(a / b) + (1 - a) log((1 - a) / (1 - b)).

    Args:
        n: number of losses.
        total: their sum.
        tolerance: in (0, 1).
    """
    if not n:
        return 1.0
    mean = min(total / n, tolerance)
    below = mean * math.log(mean / tolerance) if mean else 0.0
    above = (1 - mean) * math.log((1 - mean) / (1 - tolerance))
    hoeffding = math.exp(-n * (below + above))
    bentkus = math.e * _at_most(math.ceil(total), n, tolerance)
    return min(1.0, hoeffding, bentkus)


def _at_most(k: int, n: int, share: float) -> float:
    """The probability of at most `k` ones among `n`, each of which is one with probability `share`."""
    from scipy import special  # takes as long to import as the whole package

    return 1.0 if k >= n else 0.0 if k < 0 else float(special.bdtr(k, n, share))


def p_value_of(binary: bool) -> PValue:
    """The p-value for losses that can only be 0 or 1 (`binary`), or anything in [0, 1]."""
    return binomial_p if binary else hoeffding_bentkus_p


def most_lost(n: int, tolerance: float, level: float, p_value: PValue = binomial_p) -> int:
    """The largest whole sum of `n` losses whose p-value is at most `level`; -1 if not even 0 is small enough."""
    lost = -1
    while lost < n and p_value(n, lost + 1, tolerance) <= level:
        lost += 1
    return lost


def least_prompts(tolerance: float, level: float) -> int:
    """How many prompts without any loss give a p-value of at most `level`, with either p-value."""
    return math.ceil(math.log(level) / math.log1p(-tolerance) - 1e-9)


def prompts_needed(risk: float, tolerance: float, level: float, p_value: PValue) -> int | None:
    """How many prompts have a p-value of at most `level` if their mean loss is `risk`.

    Args:
        risk: a mean that was measured.
        tolerance: in (0, 1).
        level: in (0, 1).
        p_value: of the losses.

    Returns:
        None if no number does, or only one above ten million: the risk is not below the tolerance.
    """
    if risk >= tolerance:
        return None
    enough: Callable[[int], bool] = lambda n: p_value(n, math.ceil(risk * n - 1e-9), tolerance) <= level
    high = least_prompts(tolerance, level)
    while not enough(high):
        high *= 2
        if high > _MOST_PROMPTS:
            return None
    low = high // 2
    while low + 1 < high:  # rounding up makes it not quite monotone, which does not matter for a number to aim at
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def interval(losses: Sequence[float] | np.ndarray, confidence: float, binary: bool) -> tuple[float, float]:
    """An interval that holds the risk with probability `confidence`: both of its ends by half of what is left.

    For losses of 0 or 1 it is that of Clopper and Pearson; else its ends are the risks that `hoeffding_bentkus_p`
    does not reject, for the losses and for one minus the losses.

    Args:
        losses: (n,) with n >= 1, in [0, 1].
        confidence: in (0, 1).
        binary: whether losses can only be 0 or 1.
    """
    from scipy import stats

    n, total = len(losses), math.fsum(losses)
    if binary:
        ends = stats.binomtest(round(total), n).proportion_ci(confidence, method="exact")
        return float(ends.low), float(ends.high)
    level = (1 - confidence) / 2
    return 1 - _largest_risk(n, n - total, level), _largest_risk(n, total, level)


def _largest_risk(n: int, total: float, level: float) -> float:
    """The largest risk that bounded losses of this sum do not reject at a level."""
    from scipy import optimize

    mean, last = min(1.0, max(0.0, total / n)), 1 - 1e-12
    excess: Callable[[float], float] = lambda risk: hoeffding_bentkus_p(n, total, risk) - level
    if mean >= last or excess(last) > 0:
        return 1.0
    return float(optimize.brentq(excess, max(mean, 1e-12), last))
