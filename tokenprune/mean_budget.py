"""A budget that counts the mean over decoder layers, and how it is split among the stages. Nothing here needs torch.

A policy that drops tokens between decoder layers holds more of them below its cuts than above. Compute and KV cache go
with the mean over the layers. `MeanBudget` finds the numbers after each stage and each cut whose mean is the budget.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .budget import Budget

_LARGE = 10**6  # tokens, where rounding does not matter
_HALVINGS = 60  # of an interval of logarithms: more than a float64 can tell apart


class UnreachableBudgetError(ValueError):
    """The mean over decoder layers cannot be as low as the budget; the message names the least one."""


@dataclass(frozen=True)
class DecoderCuts:
    """The cuts of a decoder-stage policy in one model.

    Args:
        n_layers: decoder layers of the model.
        layers: before which tokens leave, ascending.
        counts: `counts(n, n_keep)`: how many of `n` tokens that entered the decoder stay after each cut, not rounded,
            if `n_keep` are to stay after the last one; growing with `n_keep`.
        entry: `entry(share, exponent)`: the share of the tokens that enters the decoder where something acts before
            it, if `share` stays after the last cut (`Policy.decoder_entry`).
    """

    n_layers: int
    layers: tuple[int, ...]
    counts: Callable[[int, float], Sequence[float]]
    entry: Callable[[float, float], float] = pow

    def left(self, n: int, n_keep: float) -> tuple[int, ...]:
        """Tokens after each cut: rounded (halves to even), never growing, and at most `n`."""
        most, left = n, []
        for count in self.counts(n, n_keep):
            most = max(0, min(most, round(count)))
            left.append(most)
        return tuple(left)

    def mean(self, n: int, left: Sequence[int]) -> float:
        """Tokens that a decoder layer holds, a mean over all layers.

        Args:
            n: tokens that entered the decoder.
            left: tokens after each cut.
        """
        borders = [0, *self.layers, self.n_layers]
        stretches = (end - first for first, end in itertools.pairwise(borders))
        held = zip([n, *left], stretches, strict=True)
        return sum(count * length for count, length in held) / self.n_layers


@dataclass(frozen=True)
class MeanBudget:
    """Visual tokens that a decoder layer holds of each visual input, as a mean over all decoder layers.

    The numbers after all stages and cuts grow with one scale in (0, 1], the share of the input's tokens that is left
    after the last cut. The scale is solved for the mean. Where another number of tokens enters the decoder than planned
    (a policy that keeps whole rows), the cuts are solved again for the same mean.

    Args:
        budget: the mean, as a ratio of each input's tokens or a number per input.
        cuts: of the policy that acts in the decoder.
        exponent: `scale ** exponent` of an input's tokens enter the decoder, unless `cuts.entry` says otherwise; 0 if
            nothing acts before it.
    """

    budget: Budget
    cuts: DecoderCuts
    exponent: float = 0.0
    _scales: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    _left: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def keeps_all(self) -> bool:
        """Whether everything stays, whatever the input."""
        return self.budget.keeps_all

    def count(self, n: int) -> int:
        """Tokens after the last cut of an input of `n`."""
        return self.left(n, self.before(n, self.exponent))[-1]

    def before(self, n: int, exponent: float) -> int:
        """Tokens left of `n` after a stage with that exponent. With the budget's own one, these enter the decoder."""
        if self.budget.count(n) >= n:
            return n
        if n not in self._scales:
            self._scales[n] = _solve(lambda scale: self._mean(n, scale), self._least_scale(n), self.budget.count(n))
        return self._part(n, self._scales[n], exponent)

    def left(self, n: int, entered: int) -> tuple[int, ...]:
        """Tokens after each cut, whose mean over the layers is nearest to the budget.

        Args:
            n: tokens of the input.
            entered: how many of them entered the decoder.
        """
        wanted, cuts = self.budget.count(n), self.cuts
        if wanted >= n or entered == 0:
            return (entered,) * len(cuts.layers)
        key = wanted, entered
        if key not in self._left:

            def left(share: float) -> tuple[int, ...]:
                return cuts.left(entered, max(1.0, entered * share))

            share = _solve(lambda share: cuts.mean(entered, left(share)), 1 / entered, wanted)
            self._left[key] = left(share)
        return self._left[key]

    def least(self, n: int) -> float:
        """The least mean that can be reached with an input of `n` tokens, with one token after the last cut."""
        return self._mean(n, self._least_scale(n))

    def check(self, n: int, policy: str) -> None:
        """Raise `UnreachableBudgetError` if the mean cannot be as low as the budget.

        Args:
            n: tokens of an input.
            policy: name of what acts in the decoder, for the message.
        """
        keep = self.budget.keep
        if isinstance(keep, int) and keep < n and self._plans(n) and (least := self.least(n)) >= keep + 1:
            raise UnreachableBudgetError(
                self._refusal(policy, f"{least:.1f} of {n} tokens", f"keep >= {math.ceil(least)}")
            )

    @property
    def has_room(self) -> bool:
        """Whether what the layers below the first cut must hold is at most half of the budget, if this is a ratio."""
        return self.least(_LARGE) / _LARGE <= self.budget.keep / 2

    def check_ratio(self, policy: str) -> None:
        """Raise `UnreachableBudgetError` if the mean cannot be as low as a ratio, for inputs of many tokens."""
        keep, least = self.budget.keep, self.least(_LARGE) / _LARGE
        if isinstance(keep, float) and self._plans(_LARGE) and keep < least - 1e-3:
            raise UnreachableBudgetError(self._refusal(policy, f"{least:.3g} of the tokens", f"keep >= {least:.3g}"))

    def _plans(self, n: int) -> bool:
        """Whether the policy says how many leave in the decoder, or finds out when it sees them."""
        return self.cuts.left(n, 1)[-1] < n

    def _refusal(self, policy: str, least: str, accepted: str) -> str:
        cuts = self.cuts
        return (
            f"keep={self.budget.keep!r} is a mean over the {cuts.n_layers} decoder layers, and policy {policy!r} holds "
            f"{least} at least, since nothing leaves before layer {cuts.layers[0]}; accepted: {accepted}, "
            f"another policy before the decoder (['divprune', {policy!r}]), or budget='final' ({policy}@final in "
            "commands), where keep counts what is left after the last cut"
        )

    def _least_scale(self, n: int) -> float:
        """The scale at which one token is left, and enters the decoder if something acts before it."""
        return (1 / n) ** max(1.0, 1 / self.exponent) if self.exponent else 1 / n

    def _mean(self, n: int, scale: float) -> float:
        entered = self._part(n, scale, self.exponent)
        return self.cuts.mean(entered, self.cuts.left(entered, max(1.0, n * scale)))

    def _part(self, n: int, scale: float, exponent: float) -> int:
        share: float = self.cuts.entry(scale, self.exponent) ** (exponent / self.exponent) if self.exponent else 1.0
        return max(1, round(n * share))


@dataclass(frozen=True)
class MeanBudgetBefore:
    """Tokens that are left after a stage before the decoder, on the way to a mean over decoder layers.

    Args:
        mean: the budget.
        exponent: of the stage (see `MeanBudget`).
    """

    mean: MeanBudget
    exponent: float

    @property
    def keeps_all(self) -> bool:
        """Whether everything stays, whatever the input."""
        return self.mean.keeps_all

    def count(self, n: int) -> int:
        """Tokens kept of `n`."""
        return self.mean.before(n, self.exponent)


def _solve(mean: Callable[[float], float], least: float, wanted: float) -> float:
    """The argument in [`least`, 1] at which a growing step function is nearest to `wanted`; of equals, the smaller."""
    if mean(1.0) <= wanted:
        return 1.0
    if mean(least) >= wanted:
        return least
    low, high = math.log(least), 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if mean(math.exp(middle)) <= wanted:
            low = middle
        else:
            high = middle
    below, above = math.exp(low), math.exp(high)
    return below if wanted - mean(below) <= mean(above) - wanted else above
