"""What is known of one visual input from the vision encoder: captured values, and the tokens that its stage kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..device import index_rows
from .config import PruningConfig
from .visual_inputs import VisualInput


def kept_in_encoder(config: PruningConfig, visual: VisualInput) -> Tensor | None:
    """(K,) indices on the host, among the candidates, of the tokens that came out of the vision encoder; None: all.

    Raises:
        ValueError: if the features were computed without what acts before or inside it.
    """
    if visual.activations is not None and visual.activations[0].kept:  # under this pruning or, for a draft, another one
        activations, index = visual.activations
        return activations.survivors(index)
    n, stages = len(visual.columns), (("before", config.pixels), ("inside", config.encoder))
    acting = [(where, stage.policy) for where, stage in stages if stage is not None and stage.drops(n)]
    if not acting:
        return None
    if visual.activations is None:
        where, policy = acting[0]
        raise ValueError(
            f"policy {policy!r} acts {where} the vision tower, but these features were computed "
            "without it; pass pixel values, or compute the features with pruning applied"
        )
    activations, index = visual.activations
    return activations.survivors(index)


def encoder_values(
    config: PruningConfig, visual: VisualInput, n: int, offered: Tensor | None, device: torch.device
) -> dict[str, Any]:
    """Fields of `VisualTokens` that come from the vision encoder.

    Args:
        config: of the pruning; something acts at the vision stage.
        visual: the input.
        n: how many tokens the policy sees.
        offered: which of the candidates they are; None: all.
        device: of the embeddings; the vision encoder may have another.

    Raises:
        ValueError: if the features were computed without capturing, or the numbers of tokens differ.
    """
    assert config.vision is not None
    policy = config.vision.policy
    if policy.encoder_spec() is None:
        return {}
    if visual.activations is None:
        raise ValueError(
            f"policy {policy.name!r} reads the vision encoder, but these features were computed "
            "without it listening; pass pixel values, or compute the features with pruning applied"
        )
    activations, index = visual.activations
    values: dict[str, Any] = {}
    for name in ("attention", "keys", "features", "patches", "entropy"):
        by_input = getattr(activations, name)
        if by_input is not None:
            value = by_input[index] if offered is None else index_rows(by_input[index], offered)
            values["patch_entropy" if name == "entropy" else f"encoder_{name}"] = value.to(device)
            if len(value) != n:
                raise ValueError(f"the encoder gave {len(value)} {name} for {n} visual tokens")
    if activations.padding is not None:
        padding = activations.padding[index]
        values["is_padding"] = padding if offered is None else padding[offered]
    if "encoder_features" in values:
        projector = config.base.get_submodule(config.family.encoder.projector)  # type: ignore[union-attr]
        values["project"] = lambda merged: projector(merged).to(merged.device)
    return values
