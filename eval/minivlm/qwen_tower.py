"""The vision tower of the miniature Qwen2.5-VL as it is trained: all windows of all images at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from .checkpoint import PIXEL_MEAN, PIXEL_STD
from .drawing import PATCH

MERGE, TEMPORAL = 2, 2
VISION_PATCH = PATCH // MERGE
WINDOW = 4  # height and width of an attention window in visual tokens


def patches(images: Tensor) -> Tensor:
    """Patches of images, as the image processor makes them: float32 (B * n_patches, 3 * 2 * 4 * 4).

    Args:
        images: uint8 (B, H, W, 3), H and W multiples of 8; or (B, 2, H, W, 3), two frames of a video each.
    """
    if images.ndim == 4:
        images = images.unsqueeze(1).expand(-1, TEMPORAL, -1, -1, -1)  # an image is repeated as two frames
    pixels = (images.permute(0, 4, 1, 2, 3).float() / 255 - PIXEL_MEAN) / PIXEL_STD
    batch, channels, frames, height, width = pixels.shape
    p = VISION_PATCH
    pixels = pixels.view(batch, channels, frames, height // PATCH, MERGE, p, width // PATCH, MERGE, p)
    # rows and columns of tokens, of patches in a token, channels, frames, pixels
    pixels = pixels.permute(0, 3, 6, 4, 7, 1, 2, 5, 8)
    return pixels.reshape(-1, channels * frames * p * p)


def grids(n: int, height: int, width: int) -> Tensor:
    """Frames, rows and columns of the patches of `n` images, int64 (n, 3)."""
    return torch.tensor([[1, height // VISION_PATCH, width // VISION_PATCH]]).expand(n, -1)


def _attention(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Vision attention within each row of `hidden` (B, n, D)."""
    batch, n, _ = hidden.shape
    q, k, v = attention.qkv(hidden).view(batch, n, 3, attention.num_heads, -1).unbind(2)
    q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=attention.scaling)
    return attention.proj(out.transpose(1, 2).reshape(batch, n, -1))


def tower(model: Any, images: Tensor, pooled: bool = True) -> tuple[Tensor, None]:
    """Visual tokens after the merger, (B, N, D), and None, since there is no CLS.

    The stock tower computes attention window by window. This computes all windows at once, which needs images of one
    size.

    Args:
        model: the Qwen2.5-VL.
        images: as `patches` takes them, H and W multiples of 32.
        pooled: ignored.
    """
    visual = model.model.visual
    batch, (height, width) = len(images), (side // PATCH for side in images.shape[-3:-1])
    rows, columns = height // WINDOW, width // WINDOW
    n = WINDOW * WINDOW * MERGE * MERGE  # patches of a window

    def windows(x: Tensor) -> Tensor:  # (B, patches, ...): from the order of tokens to that of windows
        x = x.view(len(x), rows, WINDOW, columns, WINDOW, MERGE * MERGE, *x.shape[2:])
        return x.transpose(2, 3).flatten(1, 5)

    y, x, b, a = torch.meshgrid(*map(torch.arange, (height, width, MERGE, MERGE)), indexing="ij")
    coordinates = torch.stack([y * MERGE + b, x * MERGE + a]).flatten(1)  # row and column of each patch
    hidden = visual.patch_embed(patches(images))
    cos, sin = (windows(c[None]) for c in visual.rotary_pos_emb(hidden, coordinates.T))
    hidden = windows(hidden.view(batch, -1, hidden.shape[-1]))
    for i, block in enumerate(visual.blocks):
        length = hidden.shape[1] if i in visual.fullatt_block_indexes else n
        normed, *rotary = (part.reshape(-1, length, part.shape[-1]) for part in (block.norm1(hidden), cos, sin))
        rotary = [part.repeat(batch, 1, 1) for part in rotary]
        hidden = hidden + _attention(block.attn, normed, *rotary).view_as(hidden)
        hidden = hidden + block.mlp(block.norm2(hidden))
    tokens = visual.merger(hidden).view(batch, rows, columns, WINDOW, WINDOW, -1)
    return tokens.transpose(2, 3).flatten(1, 4), None
