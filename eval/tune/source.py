"""The losses and costs of settings on a model's prompts, one half of which ranks and one tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..setting import PruningSetting
from .asking import Answered, Asker
from .metrics import Metric, Score, loss, quick_loss
from .prompts import Prompt

GROUP = 4  # batches of the test after which a setting that cannot pass any more is given up


@dataclass(frozen=True)
class Halves:
    """Which batches rank and which test.

    Attributes:
        ranking: indices of batches.
        testing: indices of batches, in groups.
    """

    ranking: Sequence[int]
    testing: Sequence[Sequence[int]]


def deal(prompts: Sequence[Prompt], batch: int, seed: int) -> tuple[list[list[Prompt]], Halves]:
    """Batches of prompts in random order; those of the first half of the prompts rank, the others test.

    Args:
        prompts: at least two.
        batch: prompts in each.
        seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(len(prompts))
    cut: Callable[[np.ndarray], list[list[Prompt]]] = lambda part: [
        [prompts[i] for i in part[first : first + batch]] for first in range(0, len(part), batch)
    ]
    ranking, testing = cut(order[: len(prompts) // 2]), cut(order[len(prompts) // 2 :])
    n, last = len(ranking), len(ranking) + len(testing)
    groups = [range(first, min(first + GROUP, last)) for first in range(n, last, GROUP)]
    return ranking + testing, Halves(range(n), groups)


class ModelSource:
    """A `certify.Source` that asks a model.

    Args:
        asker: of the model, which has answered all prompts.
        halves: which batches rank and which test.
        metric: what a prompt loses.
        score: of answers.
        cost: of a setting that was asked.
        tick: receives the number of prompts that were asked.
    """

    def __init__(
        self,
        asker: Asker,
        halves: Halves,
        metric: Metric,
        score: Score,
        cost: Callable[[PruningSetting], float],
        tick: Callable[[int], None] = lambda count: None,
    ):
        self.asker, self.halves, self.metric, self.score, self.tick = asker, halves, metric, score, tick
        self.cost = cost
        self.ranking: Sequence[int] = [len(asker.batches[i]) for i in halves.ranking]
        self.testing: Sequence[int] = [sum(len(asker.batches[i]) for i in group) for group in halves.testing]

    def ranked(self, setting: PruningSetting, groups: int, exact: bool) -> np.ndarray:
        return self._losses(setting, self.halves.ranking[:groups], exact)

    def tested(self, setting: PruningSetting, group: int) -> np.ndarray:
        return self._losses(setting, self.halves.testing[group], True)

    def _losses(self, setting: PruningSetting, batches: Sequence[int], exact: bool) -> np.ndarray:
        """Losses on the prompts of some batches, exact or at least as large."""
        of_prompt = loss if exact else quick_loss
        found = []
        for i, answered in zip(batches, self._ask(setting, batches, exact), strict=True):
            triples = zip(self.asker.batches[i], self.asker.replies[i], answered.pruned, strict=True)
            found += [of_prompt(self.metric, self.score, *each) for each in triples]
        return np.array(found)

    def _ask(self, setting: PruningSetting, batches: Sequence[int], exact: bool) -> list[Answered]:
        answered = self.asker.ask(setting, batches, exact and self.metric.of_text)
        self.tick(sum(len(self.asker.batches[i]) for i in batches))
        return answered
