"""Which policies are worth a test: successive halving on prompts that the test does not use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)


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


class Source(Protocol[S_contra]):
    """Where losses come from.

    Attributes:
        ranking: number of prompts in each group of those that rank.
        testing: likewise of those that test.
    """

    ranking: Sequence[int]
    testing: Sequence[int]

    def ranked(self, setting: S_contra, groups: int, exact: bool) -> np.ndarray:
        """Losses on the first groups of the ranking prompts; without `exact` a measure that takes less time will do."""

    def tested(self, setting: S_contra, group: int) -> np.ndarray:
        """Losses on a group of the test prompts."""

    def cost(self, setting: S_contra) -> float:
        """What a setting costs, once it has been asked something."""


def halve(
    source: Source[S],
    chains: Sequence[Chain[S]],
    tolerance: float,
    finalists: int,
    go_on: Callable[[], bool] = lambda: True,
) -> list[Ranked[S]]:
    """Rank chains by the cost of their cheapest setting that seems to be within the tolerance.

    Each round asks the remaining chains more prompts, up to all in the last one, and leaves the better half of them, or
    `finalists`. Within a chain, that setting is found by bisection: cheaper settings are taken to lose more.

    Args:
        source: of losses and costs.
        chains: of at least one setting each.
        tolerance: largest mean loss.
        finalists: how many chains are wanted.
        go_on: whether there is time to rank a further chain.

    Returns:
        The chains of the last round, the best first; more than `finalists` only if it is the only round. If time runs
        out, those that were ranked last, at least one.
    """
    left, ranked = list(chains), list[Ranked[S]]()
    rounds = 1 + max(0, math.ceil(math.log2(len(left) / finalists)))
    for i in range(rounds):
        if ranked and not go_on():
            break
        last, groups = i == rounds - 1, max(1, math.ceil(len(source.ranking) / 2 ** (rounds - 1 - i)))
        risk = lambda setting, groups=groups, last=last: float(np.mean(source.ranked(setting, groups, last)))
        ranked = []
        for chain in left:
            if ranked and not go_on():
                break
            ranked.append(_rank(chain, risk, tolerance, source.cost))
        ranked.sort(key=lambda each: (each.cost, each.risk))
        left = [each.chain for each in ranked[: max(finalists, math.ceil(len(ranked) / 2))]]
    return ranked


def _rank(chain: Chain[S], risk: Callable[[S], float], tolerance: float, cost: Callable[[S], float]) -> Ranked[S]:
    """Bisect a chain."""
    risks: dict[int, float] = {}
    low, high = -1, len(chain.settings)  # the cheapest known to be within the tolerance, the safest known not to be
    while low + 1 < high:
        middle = (low + high) // 2
        risks[middle] = risk(chain.settings[middle])
        low, high = (middle, high) if risks[middle] <= tolerance else (low, middle)
    if low < 0:
        return Ranked(chain, None, math.inf, risks[0])
    return Ranked(chain, chain.settings[low], cost(chain.settings[low]), risks[low])
