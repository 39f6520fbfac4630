"""Which settings are tried: policies, what they are composed of, positions and budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

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
KEEPS: tuple[float | int, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.33, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05)

#: A policy as text, which is tried at every keep ratio; or settings from safe to cheap, as those of one policy whose
#: options, a threshold for example, say how much stays.
Candidate = str | Sequence[PruningSetting]


def chains_of(
    model: nn.Module,
    candidates: Sequence[Candidate],
    keeps: Sequence[float | int],
    positions: Sequence[Positions],
    note: Callable[[str], object] = lambda text: None,
) -> list[Chain[PruningSetting]]:
    """A chain of settings for each candidate and kind of positions.

    Args:
        model: not pruned.
        candidates: what is tried.
        keeps: budgets of policies given as text. They are sorted from safe to cheap; numbers of tokens and ratios
            cannot be mixed. A preset with a budget of its own has that one only.
        positions: of surviving tokens, for policies given as text.
        note: receives, once per reason, why a candidate is left out.

    Raises:
        CommandError: no candidate can act on the model, or ratios and numbers of tokens are mixed.
    """
    if len({isinstance(keep, int) for keep in keeps}) > 1:
        raise CommandError("--keep mixes ratios and numbers of tokens, whose order from safe to cheap is not known")
    ladder = sorted(set(keeps), reverse=True)
    chains, reasons = list[Chain[PruningSetting]](), list[str]()
    for candidate in candidates:
        for each in positions if isinstance(candidate, str) else positions[:1]:
            settings = _settings(candidate, ladder, each)
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
    """`divprune 0.5`, or `divprune 0.5, compact`."""
    return str(setting) + (", compact" if setting.positions == "compact" else "")


def _settings(candidate: Candidate, ladder: Sequence[float | int], positions: Positions) -> list[PruningSetting]:
    if not isinstance(candidate, str):
        return list(candidate)
    own = own_keep(candidate)
    return [PruningSetting(candidate, keep, positions) for keep in (ladder if own is None else [own])]


def _name(settings: Sequence[PruningSetting]) -> str:
    """What tables call a chain."""
    first, last = settings[0], settings[-1]
    name = first.name if first.name == last.name else f"{first.name} to {last.name}"
    return f"{name}, compact" if first.positions == "compact" else name
