"""Pixel-stage pruning in towers whose patches carry their place in the picture, and are pooled by it (Gemma 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import TokenBudget
from ..device import to_device
from ..policies.base import Policy
from ..policies.types import Grid, VisualTokens
from ..stopwatch import Stopwatch
from .call import unchanged
from .families.base import Family
from .modules import arguments_by_name
from .pixel_stage import PixelCall, PixelStage
from .restored_tokens import rows


@dataclass(frozen=True)
class KeptRows:
    """Which tokens and patches are left of a batch of pictures or frames.

    Attributes:
        keep: (N,) bool on the host, by token of all inputs.
        index: (B, K) int64 on the host, patches that are left of each, filled up with others to one length.
        is_left: (B, K) bool on the host, False at those that fill up.
        n: patches of each, padding included.
    """

    keep: Tensor
    index: Tensor
    is_left: Tensor
    n: int

    def of_all(self, values: Tensor) -> Tensor:
        """(B, n, C) of (B, K, C) values of the patches that are left, with zeros elsewhere."""
        if values.shape[1] == self.n:
            return values
        index, is_left = (to_device(each, values.device)[..., None] for each in (self.index, self.is_left))
        whole = values.new_zeros(len(values), self.n, values.shape[2])
        return whole.scatter(1, index.expand_as(values), values.masked_fill(~is_left, 0.0))


@dataclass
class PositionedCall(PixelCall):
    """One call of such a tower.

    Attributes:
        pixels: (B, n, channels of a patch); None before the tower.
        positions: (B, n, 2), column and row of each patch, -1 at padding; on the host; None before the tower.
        embedded: (B, n, D), patches as they are embedded, without positions; None before that.
    """

    pixels: Tensor | None = None
    positions: Tensor | None = None
    embedded: Tensor | None = None


class PositionedStage(PixelStage):
    """Hooks on the tower, on what embeds patches, and on the encoder in it.

    Patches are embedded, and those of the tokens that stay go through the encoder, filled up with padding where
    pictures of a batch keep different numbers. Behind it the raster is whole again, with zeros where patches have left,
    and is pooled as always.

    Args:
        base: the base model.
        family: its facts; they name the tower.
        policy: acts at the pixels stage.
        budget: of it.
    """

    def __init__(self, base: nn.Module, family: Family, policy: Policy, budget: TokenBudget):
        self.policy, self.budget = policy, budget
        assert family.encoder is not None and family.encoder.positioned_tower is not None
        tower: Any = family.encoder.positioned_tower(base)
        self.tower, self.kernel = tower, int(tower.config.pooling_kernel_size)
        self._handles: list[Any] = []

    def attach(self) -> None:
        tower = self.tower
        self._handles += [
            tower.register_forward_pre_hook(self._note_pixels, with_kwargs=True),
            tower.patch_embedder.input_proj.register_forward_hook(self._note_patches),
            tower.encoder.register_forward_pre_hook(self._enter_encoder, with_kwargs=True),
            tower.encoder.register_forward_hook(self._leave_encoder),
        ]

    def _new_call(self, **facts: Any) -> PositionedCall:
        return PositionedCall(self, **facts)

    def _positioned_call(self) -> PositionedCall | None:
        call = self._call()
        return call if isinstance(call, PositionedCall) else None

    def _note_pixels(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self._positioned_call()
        if call is not None:
            named = {**dict(zip(("pixel_values", "pixel_position_ids"), args, strict=False)), **kwargs}
            call.pixels, call.positions = named["pixel_values"], named["pixel_position_ids"].cpu()

    def _note_patches(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        call = self._positioned_call()
        if call is not None:
            call.embedded = output

    def _enter_encoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the encoder: give it the patches of the tokens that stay, with their positions."""
        call = self._positioned_call()
        if call is None:
            return None
        args, arguments = arguments_by_name(module, args, kwargs)
        embeds, positions = arguments["inputs_embeds"], arguments["pixel_position_ids"]
        watch = Stopwatch(embeds.device)
        kept = self._kept(call)
        call.select_ms = watch.ms()  # `run_policy` has waited for the device
        if kept is None:
            return None
        call.kept = kept
        index, is_left = (to_device(each, embeds.device) for each in (kept.index, kept.is_left))
        return args, {
            **arguments,
            "inputs_embeds": rows(embeds, index),
            "attention_mask": is_left,
            "pixel_position_ids": rows(positions, index.to(positions.device)),
        }

    def _leave_encoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After the encoder: states of the whole raster, with zeros where patches have left."""
        call = self._positioned_call()
        if call is not None and call.kept is not None:
            output.last_hidden_state = call.kept.of_all(output.last_hidden_state)

    def _kept(self, call: PositionedCall) -> KeptRows | None:
        """What stays of the pictures of a call; None: everything."""
        assert call.pixels is not None and call.positions is not None
        sides = [self._sides(each) for each in call.positions]
        counts = [1] * len(sides)
        if call.kind == "video":
            counts = call.arguments["num_frames_per_video"].tolist()
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        shapes = [(t, *sides[first]) for t, first in zip(counts, firsts, strict=True)]
        with torch.no_grad(), unchanged(call.pixels, self.policy.label):
            keep = self._ask(
                [t * h * w for t, h, w in shapes], lambda i: self._tokens_of(call, shapes[i], firsts[i], i)
            )
        positions, call.pixels, call.embedded = call.positions, None, None
        if bool(keep.all()):
            return None
        by_frame = keep.split([h * w for h, w in sides])
        left = torch.stack(
            [self._of_patches(each, here, w) for each, here, (_, w) in zip(by_frame, positions, sides, strict=True)]
        )
        order = left.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(left.sum(1).max())]
        return KeptRows(keep, order, left.gather(1, order), left.shape[1])

    def _sides(self, positions: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens of a picture or frame."""
        width, height = (int(side) + 1 for side in positions.amax(0))
        return height // self.kernel, width // self.kernel

    def _token_of(self, positions: Tensor, width: int) -> Tensor:
        """(n,) which token each patch is pooled into, by rows of `width` tokens; -1 at padding."""
        x, y = (positions // self.kernel).unbind(1)
        return torch.where((positions >= 0).all(1), x + width * y, -1)

    def _of_patches(self, keep: Tensor, positions: Tensor, width: int) -> Tensor:
        """(n,) bool, whether the token of each patch stays; False at padding."""
        token = self._token_of(positions, width)
        return (token >= 0) & keep[token.clamp(min=0)]

    def _tokens_of(self, call: PositionedCall, shape: Grid, first: int, index: int) -> VisualTokens:
        """What the policy sees of an input that begins at a frame: the patches of each token row by row."""
        assert call.pixels is not None and call.positions is not None and call.embedded is not None
        is_raw, unit = self.policy.pixel_features == "raw", self.kernel**2
        parts = []
        for i in range(first, first + shape[0]):
            x, y = call.positions[i].unbind(1)
            token = self._token_of(call.positions[i], shape[2])
            place = (token * self.kernel + y % self.kernel) * self.kernel + x % self.kernel
            place = torch.where(token >= 0, place, place.new_tensor(torch.iinfo(place.dtype).max))
            order = to_device(place.argsort()[: shape[1] * shape[2] * unit], call.pixels.device)
            parts.append((call.pixels if is_raw else call.embedded)[i][order].unflatten(0, (-1, unit)))
        patches = torch.cat(parts)  # (N, patches of a token, ...)
        if not is_raw:
            return VisualTokens(patches.mean(1), (shape,), call.kind, index)
        side = self.tower.config.patch_size
        channels_last = patches.unflatten(2, (side, side, -1))
        features = channels_last.permute(0, 1, 4, 2, 3).flatten(1)
        layout = unit, channels_last.shape[-1], 1, side**2
        return VisualTokens(features, (shape,), call.kind, index, pixel_shape=layout)
