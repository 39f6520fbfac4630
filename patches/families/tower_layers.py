"""Layers and attention of vision encoders, where several families find them in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import nn


def last_attention(layers: str, name: str = "self_attn") -> Callable[[Any, Literal["feature", "last"]], nn.Module]:
    """`EncoderFacts.attention` where the last layer is also the one whose features the language model gets.

    Args:
        layers: path of the layers of the vision encoder in the base model.
        name: of a layer's attention.
    """

    def attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
        found: nn.Module = getattr(base.get_submodule(layers)[-1], name)
        return found

    return attention


def feature_layer(layers: Any, index: int | Sequence[int]) -> Any:
    """The layer whose output is hidden state `index` of a vision encoder, as `vision_feature_layer` counts them.

    Hidden state 0 is the output of the embeddings, so that 1 is that of the first layer; -1 is that of the last. Of
    several, the one that is named last.
    """
    i = index if isinstance(index, int) else index[-1]
    return layers[i if i < 0 else i - 1]


def layers_below_feature(layers: Any, index: int | Sequence[int]) -> Any:
    """The layers up to the one of `feature_layer`; none where several outputs are read."""
    if not isinstance(index, int):
        return layers[:0]
    return layers[: index + 1 or None] if index < 0 else layers[:index]
