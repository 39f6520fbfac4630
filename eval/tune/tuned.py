"""What tuning found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...recipe import Recipe
from .options import Options


@dataclass(frozen=True)
class Row:
    """A setting that was tested.

    Attributes:
        chain: of which it is.
        setting: as `candidates.describe` has it.
        certified: whether its risk is certified to be within the tolerance.
        risk, low, high: the mean loss of the test prompts that were asked, and an interval for the risk.
        n: how many were asked.
        cost: as a share of the full model's.
        visual_tokens: held by a decoder layer, a mean over layers and prompts.
        prefill_flops: of the language model, a mean over prompts.
        kv_cache_bytes: after the prefill, likewise.
    """

    chain: str
    setting: str
    certified: bool
    risk: float
    low: float
    high: float
    n: int
    cost: float
    visual_tokens: float
    prefill_flops: float
    kv_cache_bytes: float


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        options: how it was done.
        rows: the settings that were tested, chain by chain, from safe to cheap.
        recipe: of the cheapest certified setting; None: none is certified.
        prompts: how many were given, and how many of them tested.
        tested: likewise.
        prompts_needed: how many prompts would certify the safest setting if it went on losing as it did; None: no
            number would.
        complete: whether all chains were tested to their ends.
        notes: what users should know.
        measured: what the recipe says besides the setting, or would say; JSON values.
    """

    options: Options
    rows: list[Row]
    recipe: Recipe | None
    prompts: int
    tested: int
    prompts_needed: int | None
    complete: bool
    notes: list[str] = field(default_factory=list)
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chosen(self) -> Row | None:
        """The row of the recipe."""
        return min((row for row in self.rows if row.certified), key=lambda row: row.cost, default=None)
