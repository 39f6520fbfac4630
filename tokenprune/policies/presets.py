"""Settings of papers by name: options and budget of a row of a table, as `sparsevlm@v2-128`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..arguments import BudgetMeaning, Positions

#: The model of most papers' tables.
LLAVA_7B = "LLaVA-1.5-7B, 32 layers, 576 tokens"
#: In place of a preset's name: `keep` counts what is left after the last cut.
FINAL = "final"
#: Likewise: the policy, which acts at the vision stage, chooses before the vision tower.
PIXELS = "pixels"


@dataclass(frozen=True)
class Preset:
    """One setting of a paper.

    Attributes:
        keep: the budget, as `apply_pruning` takes it; None: given by the user, or the family's default.
        options: of the policy; the others have their defaults.
        budget: what `keep` counts: the mean over decoder layers, or what is left after the last cut.
        positions: position ids of surviving tokens.
        table: the paper's table, or the code's setting, that this is.
        model: what it was run on: name, decoder layers and visual tokens.
        mean: visual tokens that a decoder layer of that model holds, a mean over its layers; None: not known.
    """

    keep: float | int | None
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: BudgetMeaning = "final"
    positions: Positions = "original"
    table: str = ""
    model: str = ""
    mean: float | None = None


#: What that is: nothing else changes.
FINAL_PRESET = Preset(None)
PIXELS_PRESET = Preset(None, budget="mean")
_OF_ALL = {FINAL: FINAL_PRESET, PIXELS: PIXELS_PRESET}


def split_preset(text: str) -> tuple[str, str | None]:
    """A policy's name, and the preset's name after an `@`; None without one."""
    name, at, preset = text.partition("@")
    return name, preset if at else None


def preset_among(name: str, presets: Mapping[str, Preset], preset: str, others: Sequence[str] = (FINAL,)) -> Preset:
    """A preset by its name.

    Args:
        name: of the policy, for the message.
        presets: of the policy.
        preset: its name, or one of `others`.
        others: of `final` and `pixels`, those that go with the policy.

    Raises:
        ValueError: an unknown one; the message lists the known ones.
    """
    if preset in presets:
        return presets[preset]
    if preset in others:
        return _OF_ALL[preset]
    listed = ", ".join(f"{name}@{each}" for each in (*presets, *others))
    raise ValueError(f"policy {name!r} has no preset {preset!r}; accepted: {listed}")


def presets_of(prefix: str, *keeps: float | int, table: str, model: str) -> dict[str, Preset]:
    """Presets that differ in their budget only: `PREFIX-KEEP`, with ratios in per cent.

    They are for policies that act before the decoder, so that a number of tokens is its own mean.
    """
    return {
        f"{prefix}-{keep if isinstance(keep, int) else format(100 * keep, 'g')}": Preset(
            keep, table=table, model=model, mean=keep if isinstance(keep, int) else None
        )
        for keep in keeps
    }
