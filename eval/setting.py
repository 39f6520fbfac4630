"""What a model is run under: pruning policies at a keep ratio, or the full model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from torch import nn

from ..adaptive_budget import AdaptiveBudget
from ..api import apply_pruning, pruning, pruning_report
from ..arguments import POSITIONS as POSITIONS
from ..arguments import BudgetMeaning, Positions
from ..budget import Budget
from ..composition import settle
from ..patches import Record
from ..policies import Policy, make_policy
from ..policies.stages import Stage
from .policy_names import label_of, make_named_policy, parse_policy, policy_label, split_composition, stages_of

#: Name of the setting without pruning, in tables and results files.
FULL = "full"


@dataclass(frozen=True)
class PruningSetting:
    """Policies at a keep ratio, or the full model.

    Args:
        policy: one policy, or several that act at different stages: names joined by `+` ("divprune+fastv"), with
            options if wanted ("divprune+fastv:layer=3", `policy_names.py`), a `Policy` or a sequence of them. None is
            the full model.
        keep: as in `apply_pruning`, and text where it is found for each input ("energy:0.98"). None is as the policy's
            preset says ("sparsevlm@v2-128"), else the model family's default. The full model keeps 1.0. It counts the
            mean over decoder layers, or what is left after the last cut with a preset that says so, as "fastv@final".
        positions: as in `apply_pruning`. The positions of a preset replace `original`.
        options: hyper-parameters of the policy, where it is a single one given by name; besides those in its name.

    Attributes:
        policies: the policy instances; empty for the full model.
        labels: each policy's name with the options that were given, or those of an instance that are not its defaults.
        budget: what `keep` counts.

    Raises:
        UnknownPolicyError: no policy of that name.
        ValueError: a bad keep ratio, positions or policy option; options of several policies; the full model with a
            keep ratio, positions or options.
        TypeError: a policy that is neither a name nor a `Policy`.
    """

    policy: str | Policy | Sequence[Policy] | None = None
    keep: float | int | str | None = None
    positions: Positions = "original"
    options: Mapping[str, Any] = field(default_factory=dict)
    policies: tuple[Policy, ...] = field(init=False, repr=False, compare=False)
    labels: tuple[str, ...] = field(init=False, repr=False, compare=False)
    budget: BudgetMeaning = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise ValueError(f"positions={self.positions!r} is none of {', '.join(POSITIONS)}")
        given = self._given()
        policies = tuple(self._make(each) for each in given)
        keep = self.keep
        if not policies:
            if keep not in (None, 1.0) or self.positions != "original" or self.options:
                raise ValueError("the full model takes no keep, positions or options")
            keep = 1.0
        asked = settle([parse_policy(each)[0] if isinstance(each, str) else each for each in given], keep, None, None)
        if isinstance(asked.keep, AdaptiveBudget):
            keep = str(asked.keep)
        elif policies and asked.keep is not None:
            keep = Budget(cast("float | int", asked.keep)).keep
        if asked.positions != "original":
            object.__setattr__(self, "positions", asked.positions)
        object.__setattr__(self, "budget", asked.budget)
        object.__setattr__(self, "policies", policies)
        object.__setattr__(self, "labels", tuple(map(self._label, given, policies)))
        object.__setattr__(self, "keep", keep)

    def _given(self) -> tuple[str | Policy, ...]:
        """The policies one by one, as they were given."""
        given: Iterable[str | Policy]
        if self.policy is None:
            given = ()
        elif isinstance(self.policy, str):
            given = split_composition(self.policy)
        else:
            given = self.policy if isinstance(self.policy, Sequence) else (self.policy,)
        given = tuple(given)
        if self.policy is not None and not given:
            raise ValueError(f"policy={self.policy!r} names no policy; None is the full model")
        if self.options and len(given) > 1:
            raise ValueError(f"{next(iter(self.options))}: options go with a single policy, not {self.policy!r}")
        return given

    def _make(self, given: str | Policy) -> Policy:
        if isinstance(given, str):
            return make_named_policy(given, **self.options)
        return make_policy(given, **self.options)

    def _label(self, given: str | Policy, policy: Policy) -> str:
        if not isinstance(given, str):
            return label_of(policy)
        name, options = parse_policy(given)
        return policy_label(name, {each: getattr(policy.chooser, each) for each in (*options, *self.options)})

    @property
    def name(self) -> str:
        """The policies with their options, joined by `+` (`labels`), or `full`."""
        return "+".join(self.labels) or FULL

    @property
    def is_full(self) -> bool:
        """Whether this is the full model."""
        return self.name == FULL

    def __str__(self) -> str:
        return label(self.name, self.keep)

    def identity(self) -> dict[str, Any]:
        """JSON values that tell results under this setting from others: policies with all their options, keep ratio,
        what it counts where this makes a difference, and positions."""
        policy: Any = self.policies[0] if len(self.policies) == 1 else self.policies or self.name
        identity = {"policy": repr(policy), "keep": self.keep, "positions": self.positions}
        in_decoder = any(stage == Stage.DECODER for policy in self.policies for stage in stages_of(policy))
        return {**identity, "budget": self.budget} if in_decoder else identity

    def context(self, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """A context in which the model is pruned like this."""
        if not self.policies:
            return contextlib.nullcontext(model)
        return pruning(model, self.policies, self.keep, budget=self.budget, positions=self.positions)

    def apply(self, model: nn.Module) -> None:
        """Prune the model until `remove_pruning`; leave it as it is if this is the full model."""
        if self.policies:
            apply_pruning(model, self.policies, self.keep, budget=self.budget, positions=self.positions)

    def records(self, model: nn.Module) -> list[Record]:
        """What the last call of the model kept of each visual input; empty for the full model."""
        return pruning_report(model) if self.policies else []

    def prepare(
        self, processor: Any, images: Sequence[Sequence[np.ndarray]]
    ) -> tuple[Sequence[Sequence[np.ndarray]], dict[str, Any]]:
        """The images of each sample as the processor gets them, and further arguments for it.

        Pruning happens inside the model, so images, uint8 (height, width, 3), stay as they are.
        """
        return images, {}


def label(policy: str, keep: float | int | str | None) -> str:
    """How tables name a setting: `full`, `divprune 0.25`, or `divprune default` without a keep ratio."""
    return FULL if policy == FULL else f"{policy} {format_keep(keep)}"


def format_keep(keep: float | int | str | None) -> str:
    """A keep ratio or number of tokens in short, `1.0` for all, `1` for one token; `default` for the family's own; and
    a budget in text as it is."""
    if keep is None or isinstance(keep, str):
        return keep or "default"
    return "1.0" if isinstance(keep, float) and keep == 1 else f"{keep:g}"


def settings_grid(
    policies: Iterable[str],
    keeps: Sequence[float | int | str | None],
    positions: Positions = "original",
    full: bool = True,
) -> tuple[PruningSetting, ...]:
    """Every policy at every keep ratio, the full model first if `full`. Presets with budgets of their own have one."""
    pruned: list[PruningSetting] = []
    for policy in policies:
        own = own_keep(policy)
        pruned += [PruningSetting(policy, keep, positions) for keep in (keeps if own is None else [own])]
    return (*(PruningSetting(),) * full, *pruned)


def own_keep(policy: str) -> float | int | str | None:
    """The budget of the preset that a policy's name ends with; None: it has none."""
    return PruningSetting(policy).keep
