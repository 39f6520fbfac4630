"""The recipe of a setting that was certified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...recipe import Recipe, fingerprint, versions
from ..setting import PruningSetting


def recipe_of_setting(model: Any, setting: PruningSetting, measured: dict[str, Any]) -> Recipe:
    """A recipe.

    Args:
        model: that was measured, not pruned.
        setting: pruned.
        measured: what else the file says.
    """
    return Recipe(
        policies=setting.policies,
        keep=setting.keep,
        budget=setting.budget,
        positions=setting.positions,
        model={
            "type": model.config.model_type,
            "fingerprint": fingerprint(model),
            "name": _name(model),
        },
        versions=versions(),
        measured=measured,
    )


def _name(model: Any) -> str:
    """The id of a checkpoint, or the name of its folder."""
    name = getattr(model, "name_or_path", "") or type(model).__name__
    return Path(name).name if Path(name).is_dir() else name
