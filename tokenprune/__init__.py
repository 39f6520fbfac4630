"""tokenprune: drop visual tokens from Hugging Face vision-language models, without training."""

from ._version import __version__
from .api import (
    Keep,
    Positions,
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
from .patches.cache import PrunedCacheError
from .policies import Policy, UnknownPolicyError, register
from .policies.types import DecoderView, EncoderSpec, Selection, TowerCut, TowerView, VisualTokens
from .schedule import Schedule

__all__ = [
    "DecoderView",
    "EncoderFacts",
    "EncoderSpec",
    "EncoderValues",
    "Family",
    "InputFacts",
    "Keep",
    "Policy",
    "Positions",
    "PrunedCacheError",
    "PrunedSequence",
    "PruningReport",
    "PruningStatus",
    "Record",
    "Schedule",
    "Selection",
    "TowerCut",
    "TowerView",
    "UnknownPolicyError",
    "UnsupportedModelError",
    "VisualShape",
    "VisualTokens",
    "__version__",
    "apply_pruning",
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
]
