"""Whether a policy's stage in the vision tower or in the decoder fits a model; all errors come at `apply_pruning`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ..budget import Budget, PartBudget
from ..policies.base import Policy
from .decoder_stage import DeepStage
from .encoder_stage import TowerStage
from .families.base import Family

if TYPE_CHECKING:
    from .pruner import Pruner


def tower_stage(base: nn.Module, family: Family, policy: Policy, budget: Any) -> TowerStage:
    """The stage of a policy that acts inside the vision tower.

    Raises:
        ValueError: where the model's tower, or its attention implementation, does not allow it.
    """
    assert isinstance(budget, Budget | PartBudget)
    encoder, config = family.encoder, base.config
    if encoder is None or encoder.tower is None:
        raise ValueError(
            f"policy {policy!r} acts inside the vision tower, which model type "
            f"{config.model_type!r} does not allow: {family.tower_stage}; "  # type: ignore[union-attr]
            "use a policy that acts before the language model"
        )
    stage = TowerStage(base, encoder, policy, budget)
    if len(stage.layers) < 2:
        raise ValueError(f"policy {policy!r} needs a vision tower of two layers or more below one output")
    assert encoder.embeddings is not None
    if stage.resizes and hasattr(encoder.embeddings(base), "class_embedding") and not stage.cls:
        raise ValueError(f"policy {policy!r} cannot place the CLS token that this model feeds its language model")
    implementation = stage.layers[0].self_attn.config._attn_implementation or ""
    if policy.proportional and "flash" in implementation:
        raise ValueError(
            f"policy {policy!r} masks attention in the vision tower by how many patches a token stands for, "
            f"which {implementation} does not take; use proportional_attention=False, or sdpa in the vision tower"
        )
    return stage


def allows_deep_stage(base: nn.Module, family: Family) -> bool:
    """Whether tokens can leave between decoder layers of a model."""
    layers: Any = base.get_submodule(family.text_model).layers
    return family.decoder_stage is None and family.first_deep_layer(base.config) < len(layers)


def deep_stage(pruner: Pruner, policy: Policy) -> DeepStage:
    """The stage of a policy that drops tokens between decoder layers.

    Raises:
        ValueError: where the model does not allow it, or not at the policy's layers.
    """
    family, config = pruner.family, pruner.base.config
    if family.decoder_stage is not None:
        raise ValueError(
            f"policy {policy!r} drops tokens between decoder layers, which model type "
            f"{config.model_type!r} does not allow: {family.decoder_stage}; "
            "use a policy that acts before the language model (todre: removal=False)"
        )
    n, lowest = len(pruner.text.layers), family.first_deep_layer(config)
    answer = policy.deep_layers(n, lowest)
    if not isinstance(answer, list | tuple) or not all(isinstance(i, int) and not isinstance(i, bool) for i in answer):
        raise ValueError(f"policy {policy.label!r} must name its decoder layers as a list of int, got {answer!r}")
    layers = list(answer)
    if not layers or layers != sorted(set(layers)):
        raise ValueError(
            f"policy {policy.label!r} must name one decoder layer or more, ascending (deep_layers), got {layers}"
        )
    for layer in layers:
        if not lowest <= layer < n:
            raise ValueError(
                f"policy {policy!r} wants to drop tokens before decoder layer {layer}; this model accepts "
                f"{lowest} to {n - 1}"
            )
    return DeepStage(pruner, policy, layers, lowest)
