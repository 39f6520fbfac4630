"""Which policies are worth a test: successive halving on prompts that the test does not use."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True)
class Chain(Generic[S]):
    """The settings of one policy, with its options and positions.

    Attributes:
        name: of the policy.
        settings: from safe to cheap.
    """

    name: str
    settings: tuple[S, ...]


@dataclass(frozen=True)
class Ranked(Generic[S]):
    """A chain and how it did.

    Attributes:
        chain: which.
        best: its cheapest setting whose mean loss is within the tolerance; None: there is none.
        cost: of that setting; infinite without one.
        risk: its mean loss, or that of the safest setting without one.
    """

    chain: Chain[S]
    best: S | None
    cost: float
    risk: float


#: The losses of a setting on the first prompts of the ranking, so many of their batches; in the last round (True) by
#: the metric itself, before by one that takes less time.
Ask = Callable[[S, int, bool], np.ndarray]


def halve(
    chains: Sequence[Chain[S]],
    ask: Ask[S],
    batches: int,
    tolerance: float,
    cost: Callable[[S], float],
    finalists: int,
) -> list[Ranked[S]]:
    """Rank chains by the cost of their cheapest setting that seems to be within the tolerance.

    Each round asks the remaining chains more prompts, up to all in the last one, and leaves the better half of them, or
    `finalists`. Within a chain, that setting is found by bisection: cheaper settings are taken to lose more.

    Args:
        chains: of at least one setting each.
        ask: the losses.
        batches: number of batches of prompts.
        tolerance: largest mean loss.
        cost: of a setting that was asked.
        finalists: how many chains are wanted.

    Returns:
        The chains of the last round, the best first; more than `finalists` only if it is the only round.
    """
    left = list(chains)
    rounds = 1 + max(0, math.ceil(math.log2(len(left) / finalists)))
    for i in range(rounds):
        last = i == rounds - 1
        count = max(1, math.ceil(batches / 2 ** (rounds - 1 - i)))
        risk = lambda setting, count=count, last=last: float(np.mean(ask(setting, count, last)))
        ranked = sorted(
            (_rank(chain, risk, tolerance, cost) for chain in left), key=lambda each: (each.cost, each.risk)
        )
        if not last:
            left = [each.chain for each in ranked[: max(finalists, math.ceil(len(ranked) / 2))]]
    return ranked


def _rank(chain: Chain[S], risk: Callable[[S], float], tolerance: float, cost: Callable[[S], float]) -> Ranked[S]:
    """Bisect a chain."""
    risks: dict[S, float] = {}
    low, high = -1, len(chain.settings)  # the cheapest known to be within the tolerance, the safest known not to be
    while low + 1 < high:
        middle = (low + high) // 2
        setting = chain.settings[middle]
        risks[setting] = risk(setting)
        low, high = (middle, high) if risks[setting] <= tolerance else (low, middle)
    if low < 0:
        return Ranked(chain, None, math.inf, risks[chain.settings[0]])
    return Ranked(chain, chain.settings[low], cost(chain.settings[low]), risks[chain.settings[low]])
