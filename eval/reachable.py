"""Which settings of a list a model can run at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ..mean_budget import UnreachableBudgetError
from .setting import PruningSetting


def reachable(
    model: nn.Module, settings: Sequence[PruningSetting], note: Callable[[str], object]
) -> tuple[PruningSetting, ...]:
    """The settings but those whose mean over decoder layers is below what the policy must hold in this model.

    Args:
        model: the model, without pruning.
        settings: pruned ones, and the full model.
        note: is called with the reason, once for each setting that is left out.

    Raises:
        UnreachableBudgetError: no pruned setting can be reached.
        ValueError: a policy cannot act on the model.
    """
    found: list[PruningSetting] = []
    left_out: list[UnreachableBudgetError] = []
    for setting in settings:
        try:
            with setting.context(model):
                found.append(setting)
        except UnreachableBudgetError as error:
            left_out.append(error)
    if left_out and all(setting.is_full for setting in found):
        raise left_out[0]
    for reason in left_out:
        note(f"left out: {reason}")
    return tuple(found)
