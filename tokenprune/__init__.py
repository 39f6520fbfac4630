"""tokenprune: drop visual tokens from Hugging Face vision-language models, without training."""

from ._version import __version__
from .api import (
    apply_pruning,
    expand_logits,
    list_policies,
    list_supported_models,
    prune_labels,
    pruning,
    pruning_report,
    remove_pruning,
)
from .patches import Record, UnsupportedModelError
from .patches.cache import PrunedCacheError
from .policies import Policy, UnknownPolicyError, register
from .policies.types import DecoderView, EncoderSpec, Selection, TowerCut, TowerView, VisualTokens
from .schedule import Schedule

__all__ = [
    "DecoderView",
    "EncoderSpec",
    "Policy",
    "PrunedCacheError",
    "Record",
    "Schedule",
    "Selection",
    "TowerCut",
    "TowerView",
    "UnknownPolicyError",
    "UnsupportedModelError",
    "VisualTokens",
    "__version__",
    "apply_pruning",
    "expand_logits",
    "list_policies",
    "list_supported_models",
    "prune_labels",
    "pruning",
    "pruning_report",
    "register",
    "remove_pruning",
]
