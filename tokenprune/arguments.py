"""Types of the arguments of `apply_pruning`. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from .adaptive_budget import AdaptiveBudget

#: A budget: a ratio, a number of tokens, or one that is found for each input, as "energy:0.98" and "coverage:0.95".
OneKeep = float | int | str | AdaptiveBudget
#: Budgets: one, one for each policy of a list, or None for the family's default or what an adaptive policy finds.
Keep = OneKeep | Sequence[OneKeep | None] | None

#: What becomes of the position ids of surviving tokens.
Positions = Literal["original", "compact"]

POSITIONS: tuple[Positions, ...] = get_args(Positions)

#: What a single budget counts: visual tokens that a decoder layer holds, in the mean over all layers; or those that are
#: left after the last cut.
BudgetMeaning = Literal["mean", "final"]

BUDGETS: tuple[BudgetMeaning, ...] = get_args(BudgetMeaning)
