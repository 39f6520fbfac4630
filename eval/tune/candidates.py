"""Which settings are tried: policies, what they are composed of, positions and budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ...adaptive_budget import KINDS, kind_of, parsed
from ...arguments import Positions
from ..errors import CommandError
from ..reachable import refusal
from ..setting import PruningSetting, own_keep
from .ranking import Chain

#: Tried unless others are named: one of each kind that is near the top on some model, and a composition.
POLICIES = (
    "auto",
    "divprune",
    "cdpruner",
    "mmtok",
    "scope",
    "dart",
    "todre",
    "visionzip",
    "vispruner",
    "fastv",
    "pyramiddrop",
    "sparsevlm",
    "divprune+fastv",
)
#: From safe to cheap.
KEEPS: tuple[float | int | str, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.33, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05)

#: Budgets that are found for each input, from safe to cheap.
SHARES: tuple[tuple[str, ...], ...] = (
    tuple(f"energy:{share}" for share in (0.99999, 0.9999, 0.9995, 0.999, 0.998, 0.995, 0.99, 0.98, 0.95, 0.9)),
    tuple(f"coverage:{share}" for share in (0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.5)),
)
#: Policies that are tried with them.
_WITH_SHARES = ("auto", "divprune")
#: Of `pixelprune`, from safe to cheap: how much a pixel may differ from its prediction.
_TAUS = (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2)

#: A policy as text, which is tried at every keep ratio; or settings from safe to cheap, as those of one policy whose
#: options, a threshold for example, say how much stays.
Candidate = str | Sequence[PruningSetting]


def default_candidates() -> list[Candidate]:
    """What is tried unless other policies are named: `POLICIES`, and counts that are found for each input.

    These are budgets of `SHARES`, and `pixelprune` without a budget, whose `tau` says how much stays.
    """
    found = [[PruningSetting(policy, share) for share in shares] for policy in _WITH_SHARES for shares in SHARES]
    return [*POLICIES, *found, [PruningSetting(f"pixelprune:tau={tau:g}") for tau in _TAUS]]


def chains_of(
    model: nn.Module,
    candidates: Sequence[Candidate],
    keeps: Sequence[float | int | str],
    positions: Sequence[Positions],
    note: Callable[[str], object] = lambda text: None,
) -> list[Chain[PruningSetting]]:
    """A chain of settings for each candidate and kind of positions.

    Args:
        model: not pruned.
        candidates: what is tried.
        keeps: budgets of policies given as text. They are sorted from safe to cheap; numbers of tokens and ratios
            cannot be mixed. Budgets that are found for each input ("energy:0.98", "coverage:0.95") are chains of their
            own, one for each kind. A preset with a budget of its own has that one only.
        positions: of surviving tokens, for policies given as text.
        note: receives, once per reason, why a candidate is left out.

    Raises:
        CommandError: no candidate can act on the model, or ratios and numbers of tokens are mixed.
    """
    ladders = _ladders(keeps)
    chains, reasons = list[Chain[PruningSetting]](), list[str]()
    for candidate in candidates:
        for each in positions if isinstance(candidate, str) else positions[:1]:
            for settings in _settings(candidate, ladders, each):
                refusals = [refusal(model, setting) for setting in settings]
                found = tuple(one for one, error in zip(settings, refusals, strict=True) if error is None)
                if found:
                    chains.append(Chain(_name(found), found))
                else:
                    reasons += [str(error) for error in refusals[:1]]
    for reason in dict.fromkeys(reasons):
        note(f"left out: {reason}")
    chains = list({str([each.identity() for each in chain.settings]): chain for chain in chains}.values())
    if not chains:
        raise CommandError(f"no policy can act on this model: {'; '.join(dict.fromkeys(reasons)) or 'none is given'}")
    return chains


def describe(setting: PruningSetting) -> str:
    """`divprune 0.5`, `divprune 0.5, compact`, or `pixelprune:tau=0.1` where the policy finds the number itself."""
    own = setting.keep is None and any(policy.adaptive for policy in setting.policies)
    return (setting.name if own else str(setting)) + (", compact" if setting.positions == "compact" else "")


def _ladders(keeps: Sequence[float | int | str]) -> list[list[float | int | str]]:
    """Budgets from safe to cheap, those apart that are found for each input."""
    numbers = {keep for keep in keeps if not isinstance(keep, str)}
    if len({isinstance(keep, int) for keep in numbers}) > 1:
        raise CommandError("--keep mixes ratios and numbers of tokens, whose order from safe to cheap is not known")
    ladders: list[list[float | int | str]] = [[*sorted(numbers, reverse=True)]]
    for kind in KINDS:
        found = {keep: parsed(keep).share for keep in keeps if kind_of(keep) == kind}
        ladders.append([*sorted(found, key=lambda keep: -found[keep])])
    return [ladder for ladder in ladders if ladder]


def _settings(
    candidate: Candidate, ladders: Sequence[Sequence[float | int | str]], positions: Positions
) -> list[list[PruningSetting]]:
    """One list for each chain."""
    if not isinstance(candidate, str):
        return [list(candidate)]
    own = own_keep(candidate)
    return [
        [PruningSetting(candidate, keep, positions) for keep in ladder]
        for ladder in (ladders if own is None else [[own]])
    ]


def _name(settings: Sequence[PruningSetting]) -> str:
    """What tables call a chain."""
    first, last = settings[0], settings[-1]
    name = first.name if first.name == last.name else f"{first.name} to {last.name}"
    kind = kind_of(first.keep)
    if kind is not None:
        name += f", {kind.rstrip(':')} of each input"
    return f"{name}, compact" if first.positions == "compact" else name
