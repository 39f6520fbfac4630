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
from .cache import PrunedCacheError
from .patches import Record, UnsupportedModelError
from .policies import Policy, UnknownPolicyError, register
from .schedule import Schedule
from .visual import DecoderView, EncoderSpec, Selection, TowerCut, TowerView, VisualTokens

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
