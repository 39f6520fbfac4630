"""Settings tested one after another, from safe to cheap, so that all that are certified are within the tolerance.

Fixed-sequence testing (arXiv:2110.01052, section 4.1): the settings of a chain are tested in an order that does not
depend on the prompts of the test, each at the chain's level, and the first that is not rejected ends the chain. Then
the probability that any certified setting of a chain has a risk above the tolerance is at most its level. Several
chains share what is left of the confidence (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from .risk import PValue, most_lost, p_value_of

S = TypeVar("S")

_MOST_GIVEN_UP = 0.9  # of the losses that a setting may have when there is one chain


@dataclass(frozen=True)
class Goal:
    """What is to be certified.

    Args:
        tolerance: largest risk, in (0, 1).
        confidence: smallest probability, over the draw of the prompts, that the risk is within it, in (0, 1).
        binary: whether losses can only be 0 or 1, or anything in [0, 1].
        p_value: of the losses; None: `binomial_p` if they are binary, else `hoeffding_bentkus_p`.

    Raises:
        ValueError: tolerance or confidence is not in (0, 1).
    """

    tolerance: float
    confidence: float
    binary: bool = True
    p_value: PValue | None = None

    def __post_init__(self) -> None:
        for name, example in (("tolerance", 0.02), ("confidence", 0.95)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value < 1:
                raise ValueError(f"{name}={value!r} must be a number in (0, 1), for example {example}")

    @property
    def p(self) -> PValue:
        """The p-value of the losses."""
        return self.p_value or p_value_of(self.binary)

    def level(self, chains: int) -> float:
        """The level of each of so many chains."""
        return (1 - self.confidence) / chains


@dataclass(frozen=True)
class Tested(Generic[S]):
    """A setting and what its test said.

    Attributes:
        setting: which.
        losses: (n,) of the prompts that were asked; fewer than the others if it was clear that it would not pass.
        p: p-value; None if not all prompts were asked.
        level: that it was compared with.
        certified: whether its risk is certified to be within the tolerance.
    """

    setting: S
    losses: np.ndarray
    p: float | None
    level: float
    certified: bool

    @property
    def risk(self) -> float:
        """The mean loss of the prompts that were asked."""
        return math.fsum(self.losses) / len(self.losses)


def affordable_chains(n: int, goal: Goal, wanted: int) -> int:
    """How many chains may share `n` prompts, at most `wanted` and at least one.

    Each makes the level of the others smaller. So many are accepted as lower the losses that a setting may have to pass
    by a tenth at most.
    """
    alone = most_lost(n, goal.tolerance, goal.level(1), goal.p)
    counts = [count for count in range(2, wanted + 1) if _loses_little(alone, n, goal, count)]
    return max([1, *counts]) if alone >= 0 else 1


def _loses_little(alone: int, n: int, goal: Goal, count: int) -> bool:
    return most_lost(n, goal.tolerance, goal.level(count), goal.p) >= _MOST_GIVEN_UP * alone


def run_chain(
    settings: Sequence[S],
    ask: Callable[[S, int], np.ndarray],
    batches: Sequence[int],
    goal: Goal,
    level: float,
    go_on: Callable[[], bool] = lambda: True,
) -> list[Tested[S]]:
    """Test settings from safe to cheap until one does not pass.

    Args:
        settings: in an order that does not depend on the prompts of the test.
        ask: the losses of a setting on a batch of them, by its index.
        batches: number of prompts in each batch.
        goal: tolerance and losses.
        level: of this chain.
        go_on: whether there is time for a further setting. To end early certifies fewer settings, never wrong ones.

    Returns:
        What was tested, in order: certified settings, and at most one that is not.
    """
    n, tested = sum(batches), list[Tested[S]]()
    most = most_lost(n, goal.tolerance, level, goal.p)
    for setting in settings:
        if not go_on():
            break
        losses, first = np.zeros(0), not tested
        for i in range(len(batches)):
            losses = np.concatenate([losses, ask(setting, i)])
            # What a first setting that fails has lost says how many prompts would do, so it is asked them all.
            if not first and math.fsum(losses) >= most + 1:
                break
        p = goal.p(n, math.fsum(losses), goal.tolerance) if len(losses) == n else None
        certified = p is not None and p <= level
        tested.append(Tested(setting, losses, p, level, certified))
        if not certified:
            break
    return tested
