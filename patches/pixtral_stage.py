"""Pixel-stage pruning in Pixtral towers, which take the patches of all pictures as one sequence, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..budget import TokenBudget
from ..device import to_device
from ..policies.base import Policy
from ..policies.types import VisualTokens
from ..stopwatch import Stopwatch
from .call import unchanged
from .encoder_capture import patches_left
from .families.base import Family
from .modules import arguments_by_name
from .packed_tower import whole_raster
from .patch_stage import blocks_of_pixels
from .pixel_stage import PixelCall, PixelStage


@dataclass(frozen=True)
class KeptPatches:
    """Which tokens and patches are left of pictures whose patches stand row by row.

    Attributes:
        keep: (N,) bool on the host, by token.
        keep_patches: (P,) bool on the host, by patch. Patches at the right and at the bottom that belong to no token
            stay.
        counts: patches that are left of each picture.
    """

    keep: Tensor
    keep_patches: Tensor
    counts: list[int]

    @property
    def patches(self) -> Tensor:
        """(K,) indices of the patches that are left, ascending, on the host."""
        patches: Tensor = self.keep_patches.nonzero()[:, 0]
        return patches

    def of_all(self, values: Tensor) -> Tensor:
        """(..., K, C) values of the patches that are left among all, (..., P, C), with zeros elsewhere.

        What is of so many already is returned as it is.
        """
        if values.shape[-2] != sum(self.counts):
            return values
        return whole_raster(values.movedim(-2, 0), self.patches, len(self.keep_patches)).movedim(0, -2)


@dataclass
class PixtralCall(PixelCall):
    """One call of a Pixtral tower.

    Attributes:
        pixels: (B, channels, height, width), pictures padded to one size; None before the tower.
        sizes: height and width of each in patches.
        embedded: (B, D, rows, columns), patches as they are embedded; None before that.
    """

    pixels: Tensor | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    embedded: Tensor | None = None


class PixtralStage(PixelStage):
    """Hooks on a Pixtral tower, on what is in it above the embeddings, and on the module that gets its output.

    Patches are embedded, and those of the tokens that stay go through the layers with the positions that they have in
    the whole picture. Before the module behind the tower the raster is whole again, with zeros where patches have left.

    Args:
        base: the base model.
        family: its facts; they name the tower.
        policy: acts at the pixels stage.
        budget: of it.
    """

    def __init__(self, base: nn.Module, family: Family, policy: Policy, budget: TokenBudget):
        self.policy, self.budget = policy, budget
        assert family.encoder is not None and family.encoder.pixtral is not None
        tower, self.reader, self.merge = family.encoder.pixtral(base)
        self.tower: Any = tower
        self._handles: list[Any] = []

    def attach(self) -> None:
        tower = self.tower
        self._handles += [
            tower.register_forward_pre_hook(self._note_pixels, with_kwargs=True),
            tower.patch_conv.register_forward_hook(self._note_patches),
            tower.transformer.register_forward_pre_hook(self._enter_layers, with_kwargs=True),
            self.reader.register_forward_pre_hook(self._enter_reader),
        ]

    def _new_call(self, **facts: Any) -> PixtralCall:
        return PixtralCall(self, **facts)

    def _pixtral_call(self) -> PixtralCall | None:
        call = self._call()
        return call if isinstance(call, PixtralCall) else None

    def _note_pixels(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self._pixtral_call()
        if call is None:
            return
        call.pixels, call.sizes = patch_sizes(self.tower.patch_size, args, kwargs)

    def _note_patches(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        call = self._pixtral_call()
        if call is not None:
            call.embedded = output

    def _enter_layers(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the layers: give them the patches of the tokens that stay, with their positions and borders."""
        call = self._pixtral_call()
        if call is None:
            return None
        args, arguments = arguments_by_name(module, args, kwargs)
        embeds = arguments["inputs_embeds"]
        watch = Stopwatch(embeds.device)
        kept = self._kept(call)
        call.select_ms = watch.ms()  # `run_policy` has waited for the device
        if kept is None:
            return None
        call.kept = kept
        patches_left(kept.counts)
        index = to_device(kept.patches, embeds.device)
        changed: dict[str, Any] = {
            "inputs_embeds": embeds.index_select(1, index),
            "position_embeddings": tuple(each.index_select(-2, index) for each in arguments["position_embeddings"]),
        }
        mask = arguments.get("attention_mask")
        if isinstance(mask, Tensor):
            changed["attention_mask"] = mask.index_select(-1, index).index_select(-2, index)
        changed |= borders_of(arguments, kept.counts)
        return args, {**arguments, **changed}

    def _kept(self, call: PixtralCall) -> KeptPatches | None:
        """What stays of the pictures of a call; None: everything."""
        assert call.pixels is not None
        shapes = [(height // self.merge, width // self.merge) for height, width in call.sizes]
        sizes = [height * width for height, width in shapes]
        with torch.no_grad(), unchanged(call.pixels, self.policy.label):
            keep = self._ask(sizes, lambda i: self._tokens_of(call, i))
        call.pixels = call.embedded = None
        if bool(keep.all()):
            return None
        by_picture = []
        for of_tokens, (height, width), (rows, columns) in zip(keep.split(sizes), shapes, call.sizes, strict=True):
            raster = torch.ones(rows, columns, dtype=torch.bool)
            tiles = of_tokens.view(height, width).repeat_interleave(self.merge, 0).repeat_interleave(self.merge, 1)
            raster[: tiles.shape[0], : tiles.shape[1]] = tiles
            by_picture.append(raster.flatten())
        return KeptPatches(keep, torch.cat(by_picture), [int(each.sum()) for each in by_picture])

    def _tokens_of(self, call: PixtralCall, i: int) -> VisualTokens:
        """What the policy sees of one picture."""
        assert call.pixels is not None and call.embedded is not None
        (rows, columns), merge = call.sizes[i], self.merge
        shape = (1, rows // merge, columns // merge)
        if self.policy.pixel_features == "embedded":
            patches = call.embedded[i : i + 1, :, :rows, :columns]
            return VisualTokens(F.avg_pool2d(patches, merge).flatten(2)[0].T, (shape,), call.kind, i)
        side = self.tower.patch_size
        pixels = call.pixels[i : i + 1, :, : rows * side, : columns * side]
        tokens = VisualTokens(blocks_of_pixels(pixels, side, merge)[0], (shape,), call.kind, i)
        return replace(tokens, pixel_shape=(merge**2, pixels.shape[1], 1, side**2))

    def _enter_reader(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before the module behind the tower: the whole raster, with zeros where patches have left."""
        call = self._pixtral_call()
        return None if call is None or call.kept is None else (call.kept.of_all(args[0]), *args[1:])


def patch_sizes(
    side: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Pixels of a call of the tower, and rows and columns of patches, of so many pixels a side, of each picture."""
    # until some transformers 5.x the tower's forward is wrapped, and names none of its arguments
    named = {**dict(zip(("pixel_values", "image_sizes"), args, strict=False)), **kwargs}
    pixels, sizes = named["pixel_values"], named.get("image_sizes")
    if sizes is None:
        sizes = [pixels.shape[-2:]] * len(pixels)
    listed = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    return pixels, tuple((int(height) // side, int(width) // side) for height, width in listed)


def borders_of(arguments: dict[str, Any], counts: list[int]) -> dict[str, Any]:
    """Borders between pictures of so many patches, under the names by which kernels are given them."""
    found: dict[str, Any] = {}
    for name, given in arguments.items():
        if name in ("cu_seq_lens_q", "cu_seq_lens_k") and isinstance(given, Tensor):
            borders = F.pad(torch.tensor(counts).cumsum(0), (1, 0))
            found[name] = to_device(borders.to(given.dtype), given.device)
        elif name in ("max_length_q", "max_length_k") and given is not None:
            found[name] = max(counts)
        elif name == "position_ids" and isinstance(given, Tensor):  # FlashAttention reads borders from them
            found[name] = to_device(torch.cat([torch.arange(n) for n in counts])[None].to(given.dtype), given.device)
    return found
