"""Which policy acts at which stage of a model, and with what budget."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .adaptive_budget import AdaptiveBudget, parsed
from .arguments import BUDGETS, POSITIONS, BudgetMeaning, Keep, OneKeep, Positions
from .budget import Budget, PolicysBudget, TokenBudget
from .mean_budget import MeanBudget, MeanBudgetBefore
from .patches.config import allows_decoder_stage, decoder_cuts
from .patches.families.base import Family
from .patches.modules import text_model_of
from .policies import Policy, make_policy
from .policies.base import check_policy
from .policies.presets import FINAL_PRESET
from .policies.registration import preset_of
from .policies.stages import Stage

PolicyLike = str | Policy | Sequence[str | Policy]
Acting = dict[str, tuple[Policy, TokenBudget]]


class Asked(NamedTuple):
    """What stays, and with which position ids."""

    keep: Keep
    budget: BudgetMeaning
    positions: Positions


def settle(policy: PolicyLike, keep: Keep, budget: BudgetMeaning | None, positions: Positions | None) -> Asked:
    """What `apply_pruning` is asked for: what is None is as a preset says, else the default.

    A `keep` that is given counts the mean, whatever the preset's own counts, unless a name ends with `@final`. Of
    several policies, presets bring options only.

    Raises:
        ValueError: unknown names of a budget, of positions or of a preset; several policies with presets that have
            budgets of their own, and no `keep`.
    """
    if budget not in (None, *BUDGETS):
        raise ValueError(f"budget={budget!r} is unknown; accepted: {', '.join(map(repr, BUDGETS))}")
    if positions not in (None, *POSITIONS):
        raise ValueError(f"positions={positions!r} is unknown; accepted: {', '.join(map(repr, POSITIONS))}")
    several = _one_by_one(policy)
    presets = [preset for each in several if (preset := preset_of(each)) is not None]
    if any(preset == FINAL_PRESET for preset in presets):
        budget = budget or "final"
    if keep is None and any(preset.keep is not None for preset in presets):
        if len(several) > 1:
            raise ValueError(f"policies {several!r} have presets with budgets of their own: give keep")
        keep, budget = presets[0].keep, budget or presets[0].budget
    if len(several) == 1 and presets:
        positions = positions or presets[0].positions
    return Asked(parsed(keep), budget or "mean", positions or "original")


def _one_by_one(policy: PolicyLike) -> list[str | Policy]:
    return list(policy) if isinstance(policy, Sequence) and not isinstance(policy, str) else [policy]


def compose(base: Any, family: Family, policy: PolicyLike, options: Mapping[str, Any], asked: Asked) -> Acting:
    """Who acts at each stage, with its budget.

    Args:
        base: the model that merges visual features into the sequence.
        family: the facts about its type.
        policy: as in `apply_pruning`.
        options: of a policy given by name.
        asked: the budget.

    Raises:
        UnknownPolicyError: no policy of that name.
        ValueError: a bad budget or option, or a policy that cannot act on this model or not with this budget.
    """
    keep = asked.keep
    policies, keeps = _policies(policy, options, keep, allows_decoder_stage(base, family))
    budgets = [_budget(family.default_keep if each is None else each) for each in keeps]
    for each in policies:
        _check_needs(each, base, family)
    shared: list[Mapping[Stage, TokenBudget]]
    if isinstance(keep, list | tuple | AdaptiveBudget):
        _check_adaptive(policies, budgets)
        shared = [dict.fromkeys(each.stages, one) for each, one in zip(policies, budgets, strict=True)]
    else:
        (budget,) = budgets
        assert isinstance(budget, Budget)
        if asked.budget == "final" or budget.keeps_all:
            shared = _shares(policies, budget)
        else:
            if keep is not None and len(policies) == 1:
                policies = [_with_mean(policies[0], budget, base, family)]
            shared = _shares_of_mean(policies, budget, base, family, keep is None)
    return {
        str(where): (each, PolicysBudget() if own is None and each.adaptive else share)
        for each, own, shares in zip(policies, keeps * len(policies) if len(keeps) == 1 else keeps, shared, strict=True)
        for where, share in shares.items()
    }


def _budget(keep: OneKeep) -> Budget | AdaptiveBudget:
    if isinstance(keep, AdaptiveBudget):
        return keep
    if isinstance(keep, str):
        raise ValueError(
            f"keep={keep!r} is no number; accepted: a float in (0, 1] (keep ratio), an int >= 1 (tokens per visual "
            "input), 'energy:SHARE' as 'energy:0.98', 'coverage:SHARE', an AdaptiveBudget, or None (family default)"
        )
    return Budget(keep)


def _check_adaptive(policies: Sequence[Policy], budgets: Sequence[Budget | AdaptiveBudget]) -> None:
    """Raise `ValueError` where a budget that is found from tokens goes with a policy that acts elsewhere."""
    found = next((each for each in budgets if isinstance(each, AdaptiveBudget)), None)
    if found is None:
        return
    if len(budgets) < len(policies):
        raise ValueError(
            f"keep={str(found)!r} is found from the tokens of each input and cannot be shared by "
            f"{len(policies)} policies; accepted: one budget for each of them, as [{str(found)!r}, 0.1]"
        )
    for policy, budget in zip(policies, budgets, strict=True):
        if isinstance(budget, AdaptiveBudget) and policy.stages != (Stage.VISION,):
            raise ValueError(
                f"keep={str(budget)!r} is found from the tokens that the language model would get, and policy "
                f"{policy.label!r} acts at the {' and '.join(policy.stages)} stage; accepted: a policy that acts at "
                "the vision stage alone, as 'divprune', or a number"
            )


def _check_needs(policy: Policy, base: Any, family: Family) -> None:
    """Raise `ValueError` if a policy reads what this model type does not have."""
    missing = set(policy.needs - ({"text"} | ({"encoder_attention"} if family.encoder is not None else set())))
    if family.encoder is None and policy.encoder_spec() is not None:
        missing.add("the vision encoder")
    if missing:
        reason = f" ({family.no_encoder_stage})" if family.encoder is None else ""
        raise ValueError(
            f"policy {policy!r} needs {', '.join(sorted(missing))}, which is not available on model type "
            f"{base.config.model_type!r}{reason}"
        )


def _with_mean(policy: Policy, budget: Budget, base: Any, family: Family) -> Policy:
    """The policy, with options solved for a mean over decoder layers if it has such."""
    if Stage.DECODER not in policy.stages:
        return policy
    n_layers = len(text_model_of(base, family).layers)
    return policy.with_mean(budget.keep, n_layers, family.first_decoder_cut(base.config))


# Several policies share the way to one budget; a policy's own second stage has none to reach.


def _shares(policies: Sequence[Policy], budget: Budget) -> list[Mapping[Stage, TokenBudget]]:
    """For each policy, by stage, the budget on the way to what is left after the last."""
    done = list(itertools.accumulate(each.budget_weight for each in policies))
    return [
        dict.fromkeys(each.stages, budget.intermediate(weight, done[-1]))
        for each, weight in zip(policies, done, strict=True)
    ]


def _shares_of_mean(
    policies: Sequence[Policy], budget: Budget, base: Any, family: Family, by_default: bool
) -> list[Mapping[Stage, TokenBudget]]:
    """For each policy, by stage, the budget on the way to a mean over decoder layers.

    Without a policy in the decoder, the mean is what is left before it. A budget that nobody asked for (`by_default`)
    is what is left after the last cut if the layers below the first cut leave no room for it as a mean.

    Raises:
        ValueError: for a ratio below what the decoder's first layers must hold.
    """
    deciding = next((each for each in policies if Stage.DECODER in each.stages), None)
    if deciding is None or (by_default and deciding.adaptive):
        return _shares(policies, budget)
    done = list(itertools.accumulate(each.budget_weight for each in policies))
    before = [weight for each, weight in zip(policies, done, strict=True) if each.stages[0] != Stage.DECODER]
    mean = MeanBudget(budget, decoder_cuts(deciding, base, family), before[-1] / done[-1] if before else 0.0)
    if by_default and not mean.has_room:
        return _shares(policies, budget)
    mean.check_ratio(deciding.label)
    return [
        {where: mean if where == Stage.DECODER else MeanBudgetBefore(mean, weight / done[-1]) for where in each.stages}
        for each, weight in zip(policies, done, strict=True)
    ]


def _policies(
    policy: PolicyLike, options: Mapping[str, Any], keep: Keep, deep: bool
) -> tuple[list[Policy], list[OneKeep | None]]:
    """The policies in the order they act, at most one at each stage; and their budgets, or the one they share.

    `deep` says whether a policy may go on in the decoder if it likes.
    """
    given = _one_by_one(policy)
    if len(given) > 1 and options:
        raise ValueError(f"options {sorted(options)} go into policy instances when several policies are given")
    stages = [make_policy(p, **options) for p in given]
    if not stages:
        raise ValueError("expected a policy, got an empty list")
    for each in stages:
        check_policy(each)
    if (
        deep
        and not isinstance(keep, list | tuple | AdaptiveBudget)
        and not any(Stage.DECODER in s.stages for s in stages)
    ):
        follow_ups = [more for s in stages if (more := s.decoder_follow_up()) is not None]
        for each in follow_ups:
            check_policy(each)
        stages += follow_ups
    for where in Stage:
        acting = [s for s in stages if where in s.stages]
        if len(acting) > 1:
            raise ValueError(f"only one policy can act at the {where} stage, got {acting!r}")
    order = sorted(range(len(stages)), key=lambda i: list(Stage).index(stages[i].stages[0]))
    keeps: list[Any] = [keep]
    if isinstance(keep, list | tuple) and isinstance(policy, Sequence) and not isinstance(policy, str):
        if len(keep) != len(stages):
            raise ValueError(f"keep={keep!r} must have one budget for each of {len(stages)} policies")
        given_keeps = [keep[i] for i in order]
        keeps = [each if isinstance(each, AdaptiveBudget | None) else Budget(each).keep for each in given_keeps]
        for (a, one), (b, other) in itertools.pairwise(zip((stages[i].label for i in order), keeps, strict=True)):
            # Ratios and numbers of tokens cannot be compared.
            if one is not None and type(one) is type(other) and other > one:
                raise ValueError(
                    f"keep={keep!r} grows: {b!r} acts after {a!r}, which leaves {one!r} of each input, so it cannot "
                    f"leave {other!r}"
                )
    return [stages[i] for i in order], keeps
