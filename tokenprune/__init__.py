"""tokenprune: drop visual tokens from Hugging Face vision-language models, without training.

Names are imported when they are first used, so that `import tokenprune` takes no time; most need torch. None needs
transformers before a model is pruned.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .adaptive_budget import AdaptiveBudget, CoverageBudget, EnergyBudget
    from .api import (
        apply_pruning,
        expand_logits,
        list_policies,
        list_supported_models,
        prune_labels,
        pruning,
        pruning_report,
        pruning_status,
        remove_pruning,
    )
    from .arguments import BudgetMeaning, Keep, Positions
    from .drafting import draft
    from .eval.tune import Prompt, tune
    from .mean_budget import UnreachableBudgetError
    from .patches import (
        EncoderFacts,
        EncoderValues,
        Family,
        InputFacts,
        PrunedSequence,
        PruningReport,
        PruningStatus,
        Record,
        UnsupportedModelError,
        VisualShape,
        register_family,
    )
    from .patches.cache_errors import PrunedCacheError
    from .patches.kept_history import History
    from .policies import Policy, UnknownPolicyError, register
    from .policies.types import DecoderView, EncoderSpec, Selection, TowerCut, TowerView, VisualTokens
    from .recipe import Recipe, RecipeWarning
    from .schedule import Schedule

#: Public names by the module that has them.
_HOMES = {
    "adaptive_budget": ("AdaptiveBudget", "CoverageBudget", "EnergyBudget"),
    "api": (
        "apply_pruning",
        "expand_logits",
        "list_policies",
        "list_supported_models",
        "prune_labels",
        "pruning",
        "pruning_report",
        "pruning_status",
        "remove_pruning",
    ),
    "eval.tune": ("Prompt", "tune"),
    "arguments": ("BudgetMeaning", "Keep", "Positions"),
    "drafting": ("draft",),
    "mean_budget": ("UnreachableBudgetError",),
    "patches": (
        "EncoderFacts",
        "EncoderValues",
        "Family",
        "InputFacts",
        "PrunedSequence",
        "PruningReport",
        "PruningStatus",
        "Record",
        "UnsupportedModelError",
        "VisualShape",
        "register_family",
    ),
    "patches.cache_errors": ("PrunedCacheError",),
    "patches.kept_history": ("History",),
    "policies": ("Policy", "UnknownPolicyError", "register"),
    "policies.types": ("DecoderView", "EncoderSpec", "Selection", "TowerCut", "TowerView", "VisualTokens"),
    "recipe": ("Recipe", "RecipeWarning"),
    "schedule": ("Schedule",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}
#: Modules that are attributes of the package without an import of their own.
_SUBMODULES = ("api", "arguments", "budget", "device", "ops", "patches", "pickling", "policies", "schedule", "validate")

__all__ = [
    "AdaptiveBudget",
    "BudgetMeaning",
    "CoverageBudget",
    "DecoderView",
    "EncoderFacts",
    "EncoderSpec",
    "EncoderValues",
    "EnergyBudget",
    "Family",
    "History",
    "InputFacts",
    "Keep",
    "Policy",
    "Positions",
    "Prompt",
    "PrunedCacheError",
    "PrunedSequence",
    "PruningReport",
    "PruningStatus",
    "Recipe",
    "RecipeWarning",
    "Record",
    "Schedule",
    "Selection",
    "TowerCut",
    "TowerView",
    "UnknownPolicyError",
    "UnreachableBudgetError",
    "UnsupportedModelError",
    "VisualShape",
    "VisualTokens",
    "__version__",
    "apply_pruning",
    "draft",
    "expand_logits",
    "list_policies",
    "list_supported_models",
    "prune_labels",
    "pruning",
    "pruning_report",
    "pruning_status",
    "register",
    "register_family",
    "remove_pruning",
    "tune",
]


if not TYPE_CHECKING:  # it would let type checkers accept any name

    def __getattr__(name: str) -> Any:
        if name in _SUBMODULES:
            return importlib.import_module(f".{name}", __name__)
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
