"""The whole procedure: rank chains on one half of the prompts, test the best ones on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .ranking import Chain, Ranked, Source, halve
from .risk import prompts_needed
from .sequence import Goal, Tested, affordable_chains, run_chain

S = TypeVar("S")

#: Policies that are tested at most.
FINALISTS = 3


@dataclass(frozen=True)
class Outcome(Generic[S]):
    """What was found.

    Attributes:
        goal: what was asked for.
        ranked: the chains of the last round of the ranking, the best first.
        tested: per chain that was tested, its settings from safe to cheap.
        n: number of prompts of the test.
        complete: whether every chain was tested to its end; not if time ran out.
    """

    goal: Goal
    ranked: Sequence[Ranked[S]]
    tested: dict[str, list[Tested[S]]]
    n: int
    complete: bool = True

    @property
    def certified(self) -> list[Tested[S]]:
        """All settings that are certified. They are so together: any choice among them is."""
        return [each for chain in self.tested.values() for each in chain if each.certified]

    def prompts_needed(self) -> int | None:
        """How many test prompts would do, if losses went on as they were for the safest settings; None: no number."""
        found = [
            prompts_needed(chain[0].risk, self.goal.tolerance, chain[0].level, self.goal.p)
            for chain in self.tested.values()
            if chain
        ]
        return min((n for n in found if n is not None), default=None)


def certify(
    source: Source[S],
    chains: Sequence[Chain[S]],
    goal: Goal,
    go_on: Callable[[bool], bool] = lambda testing: True,
) -> Outcome[S]:
    """Rank chains, and test the best.

    The probability, over the draw of the test prompts, that any setting of `Outcome.certified` has a risk above the
    tolerance is at most one minus the confidence: which chains are tested, and in which order their settings, is
    decided on other prompts.

    Args:
        source: of the losses.
        chains: of at least one setting each, from safe to cheap.
        goal: what is to be certified.
        go_on: whether there is time to try a further setting; it receives whether this is the test.
    """
    n = sum(source.testing)
    finalists = affordable_chains(n, goal, min(FINALISTS, len(chains)))
    ranked = halve(source, chains, goal.tolerance, finalists, lambda: go_on(False))
    level, tested, complete = goal.level(finalists), dict[str, list[Tested[S]]](), True
    for each in ranked[:finalists]:
        settings = each.chain.settings
        found = run_chain(settings, source.tested, source.testing, goal, level, lambda: go_on(True))
        tested[each.chain.name] = found
        complete = complete and (len(found) == len(settings) or any(not one.certified for one in found))
    return Outcome(goal, ranked, tested, n, complete)
