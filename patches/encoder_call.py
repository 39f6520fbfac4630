"""State of the encoder stage in one call of the vision encoder."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: The call of the stage before a tower of single pictures that runs in a thread.
BEFORE: ContextVar[Any] = ContextVar("tokenprune_patch_call", default=None)


@dataclass
class EncoderCall:
    """One call of the vision encoder, as it stands at the layer that is running.

    Attributes:
        stage: the stage whose call it is.
        n: tokens of a picture or tile that entered, CLS not counted; 0 until the first cut.
        n_keep: how many of them are left in the end.
        kept: (B, K) int64 ascending, which of them are left; None while all are.
        sizes: (B, M) float, patches that each token stands for, CLS included; 0 for tokens that pad.
        has_pads: whether some of them are 0.
        memory: the policy's own notes.
        heads: query, key, value and scaling of the layer below.
        orderly: per cut, () bool on the device: whether the policy's indices were as they should be.
        select_ms: time spent on choosing, or on resizing pictures, milliseconds.
        before: the call of the stage before the tower, which has left the `n` of more; None where nothing has left.
    """

    stage: Any
    n: int = 0
    n_keep: int = 0
    kept: Tensor | None = None
    sizes: Tensor | None = None
    has_pads: bool = False
    memory: dict[str, Any] = field(default_factory=dict)
    heads: tuple[Tensor, Tensor, Tensor, float] | None = None
    orderly: list[Tensor] = field(default_factory=list)
    select_ms: float = 0.0
    before: EncoderCall | None = None

    def whole_raster(self, values: Tensor) -> Tensor:
        """(B, K, C) values of the tokens that are left as (B, N, C), zeros elsewhere."""
        if self.kept is None:
            return values
        index = self.kept.to(values.device)[..., None].expand_as(values)
        return values.new_zeros(len(values), self.n, values.shape[2]).scatter(1, index, values)

    def kept_mask(self) -> Tensor | None:
        """(B, N, 1) float32, one where a token of the whole picture is left; None while all that entered are."""
        if self.kept is None:
            return None
        mask = self.whole_raster(torch.ones_like(self.kept, dtype=torch.float32)[..., None])
        return mask if self.before is None else self.before.whole_raster(mask)


def left_before(base: Any) -> EncoderCall | None:
    """The call of the stage before a model's tower, if tokens have left there of what this thread encodes."""
    call: EncoderCall | None = BEFORE.get()
    return call if call is not None and call.kept is not None and call.stage.base is base else None
