"""How much of the pictures of earlier turns stays, and who chooses it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..budget import Budget
from ..policies.base import Policy, check_policy
from ..policies.registration import make_policy
from ..policies.stages import Stage

_ACCEPTED = "accepted: 0, a float in (0, 1), an int >= 1, None, or History(keep, policy)"


@dataclass(frozen=True)
class History:
    """What becomes of pictures of earlier turns when a new turn arrives: `apply_pruning(model, history=History(0.05))`.

    A policy chooses among the tokens that are left of a picture, by their values in the first decoder layer.

    Args:
        keep: of each picture's tokens, those that were pruned included: a ratio in (0, 1), or a number of tokens >= 1;
            0 lets all go.
        policy: a policy of the vision stage that reads tokens alone, by name or as an instance: `divprune`, `grid`.

    Raises:
        ValueError: for another keep or policy.
    """

    keep: float | int
    policy: str | Policy = "divprune"
    _policy: Policy = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.keep is True or self.keep is False or (self.keep != 0 and not self._is_budget()):
            raise ValueError(f"history={self.keep!r} is no budget for earlier pictures; {_ACCEPTED}")
        policy = make_policy(self.policy)
        check_policy(policy)
        spec = policy.encoder_spec()
        if policy.stages != (Stage.VISION,) or policy.needs or spec is not None:
            raise ValueError(
                f"history cannot be chosen by policy {policy.label!r}, which reads or does more than the tokens of a "
                "picture say; accepted: a policy of the vision stage that reads features alone, as 'divprune'"
            )
        object.__setattr__(self, "_policy", policy)

    def _is_budget(self) -> bool:
        try:
            return not Budget(self.keep).keeps_all
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.keep == 0:
            return "none of the tokens"
        left = f"{self.keep} tokens" if isinstance(self.keep, int) else f"{self.keep:g} of the tokens"
        return f"{left}, chosen by {self._policy!r}"

    @property
    def chooser(self) -> Policy:
        """The policy itself."""
        return self._policy

    def count(self, n: int) -> int:
        """Tokens that stay of a picture of `n`."""
        return 0 if self.keep == 0 else Budget(self.keep).count(n)


def history_of(given: Any) -> History | None:
    """What `apply_pruning` is given as `history`; None for None.

    Raises:
        ValueError: for anything else than it accepts.
    """
    return given if given is None or isinstance(given, History) else History(given)
