"""What one call of the vision encoder leaves for the stages behind it, by visual input."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class EncoderActivations:
    """What was captured in one call of the vision encoder, and which tokens left before or inside it, by visual input.

    Attributes:
        attention: (N,) each.
        keys: (N, H * d) or (N, d) each.
        features: (N, D_v) each.
        patches: (N, D_v) each, means over the patches that a merger made a token of.
        padding: (N,) bool each, on the host, True at patches that pad a picture; None where there are none.
        entropy: (N,) each, of the grey levels of a token's pixels; None where it is not known.
        kept: by stage (`"pixels"`, `"encoder"`), (N,) bool each, on the host, False at tokens that had left after it;
            without stages at which all stayed.
        select_ms: by stage, time spent on choosing them, milliseconds, shared out by tokens.
    """

    attention: list[Tensor] | None = None
    keys: list[Tensor] | None = None
    features: list[Tensor] | None = None
    patches: list[Tensor] | None = None
    padding: list[Tensor] | None = None
    entropy: list[Tensor] | None = None
    kept: dict[str, list[Tensor]] = field(default_factory=dict)
    select_ms: dict[str, list[float]] = field(default_factory=dict)

    def survivors(self, index: int) -> Tensor | None:
        """(K,) indices of the tokens of an input that no stage has dropped; None: all."""
        masks = [by_input[index] for by_input in self.kept.values()]
        return torch.stack(masks).all(0).nonzero()[:, 0] if masks else None
