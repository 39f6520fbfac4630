"""Where visual features came from: noted on the encoder's output, as `generate` encodes before it calls the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .encoder_activations import EncoderActivations
from .families.base import Family, Kind


@dataclass
class Generation:
    """How long the prompt is of a `generate` without a KV cache, which feeds it again with the answer so far.

    Attributes:
        prompt_length: of the prompt, tokens.
        prepared: whether `generate` has prepared the call that comes next.
    """

    prompt_length: int = 0
    prepared: bool = False

    def prepare(self, length: int, first: bool) -> None:
        """A step of `length` tokens comes next."""
        if first:
            self.prompt_length = length
        self.prepared = True

    def take(self) -> int | None:
        """Length of the prompt in the call that begins; None in any other call."""
        prepared, self.prepared = self.prepared, False
        return self.prompt_length if prepared else None


@dataclass(frozen=True)
class FeatureSource:
    """Where visual features came from.

    Attributes:
        count: how many visual inputs they are of.
        arguments: of the feature function, pixels left out: sizes, grids.
        activations: what the policy reads of the encoder, by visual input; None where it reads nothing.
        generation: the `generate` that uses them.
    """

    count: int
    arguments: Mapping[str, Any]
    activations: EncoderActivations | None = None
    generation: Generation = field(default_factory=Generation)


def feature_lengths(output: Any) -> list[int]:
    """Number of features of each tile, picture or row of the batch, as a feature function returns them.

    Empty where the container does not tell.
    """
    features = getattr(output, "pooler_output", output)
    if isinstance(features, (list, tuple)) and features and isinstance(features[0], (list, tuple)):
        features = features[0]  # (features per input, deepstack planes), transformers 4
    if isinstance(features, tuple) and len({getattr(f, "ndim", 0) for f in features}) > 1:
        features = features[0]  # (features, those of indicator tokens): Ovis 2, transformers 4
    if isinstance(features, Tensor):
        return [features.shape[1:-1].numel()] * len(features) if features.ndim in (3, 4) else []
    if all(isinstance(f, Tensor) for f in features):  # (N, D), or (frames, N, D) of a video
        return [f.shape[:-1].numel() for f in features]
    return []


def input_lengths(family: Family, config: Any, kind: Kind, output: Any, arguments: Mapping[str, Any]) -> list[int]:
    """Number of features of each visual input that a feature function returned.

    Args:
        family: the facts about the model's type.
        config: of the model.
        kind: of the inputs.
        output: of the feature function.
        arguments: of it, without pixels; empty if not known.
    """
    returned = family.lengths(config, feature_lengths(output))
    if len(returned) > 1 or family.lengths_by_grid is None:
        return returned
    by_grid = family.lengths_by_grid(config, kind, arguments)
    return returned if by_grid is None else by_grid


def same_features(one: Any, other: Any) -> bool:
    """Whether containers hold the same features: the very tensors, or equal ones on another device."""
    left, right = (tree_leaves(getattr(output, "pooler_output", output)) for output in (one, other))
    return len(left) == len(right) and all(
        a is b or (a.device != b.device and a.dtype == b.dtype and torch.equal(a.to(b.device), b))
        for a, b in zip(left, right, strict=True)
    )
