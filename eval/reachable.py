"""Which settings a model can run at all, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ..mean_budget import UnreachableBudgetError
from .setting import PruningSetting


def refusal(model: nn.Module, setting: PruningSetting) -> ValueError | None:
    """Why a model cannot be pruned like this; None: it can be.

    Args:
        model: the model, without pruning.
        setting: any.
    """
    try:
        with setting.context(model):
            return None
    except ValueError as error:
        return error


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
        error = refusal(model, setting)
        if error is None:
            found.append(setting)
        elif isinstance(error, UnreachableBudgetError):
            left_out.append(error)
        else:
            raise error
    if left_out and all(setting.is_full for setting in found):
        raise left_out[0]
    for reason in left_out:
        note(f"left out: {reason}")
    return tuple(found)
