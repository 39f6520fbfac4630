"""Policies that choose by pixels: the prompt's processor asks them, and the vision tower gets only what they keep.

They know their count before any model runs, so a prompt has exactly as many placeholders, whatever they find.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention

from ..budget import Budget
from ..patches.families.base import Kind
from ..patches.families.merged_patches import merged_grid, square_merge
from ..patches.packed_tower import KeptTokens, whole_raster
from ..policies.answers import refuse_features
from ..policies.run import run_policy
from ..policies.types import VisualTokens
from .processing import ASKED, KEPT, PruningProcessor

#: Names of a processor's outputs: pixels, and patches along (t, h, w), of all inputs one after the other.
OUTPUTS: dict[Kind, tuple[str, str]] = {
    "image": ("pixel_values", "image_grid_thw"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}


class PixelProcessor(PruningProcessor):
    """Mixed in before the stock processor of a Qwen."""

    reads_pixels = True

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        if "pixels" in self.settings.policy.stages:
            for kind, (of_pixels, of_grids) in OUTPUTS.items():
                if not mm_items.get_all_counts().get(kind, 0):
                    continue
                if processed.get(of_pixels) is None:
                    raise ValueError(
                        f"policy {self.settings.name!r} chooses by pixels, and this {kind} is sent as embeddings"
                    )
                processed[KEPT.format(kind)] = self._choose(
                    kind, processed[of_pixels], processed[of_grids], hf_kwargs[ASKED].get("keep")
                )
        return processed

    def _choose(self, kind: Kind, pixels: Tensor, grids: Tensor, keep: float | int | None) -> list[Tensor]:
        """(K,) indices of the tokens of each input that stay."""
        config = self.info.get_hf_config()
        merge = square_merge(config, kind)
        rasters = [merged_grid(grid, merge) for grid in grids.tolist()]
        lengths = [t * h * w for t, h, w in rasters]
        unit = merge[1] * merge[2]
        found = []
        patches = _normalized(pixels, self._image_processor(kind)).split([n * unit for n in lengths])
        for own, raster, n in zip(patches, rasters, lengths, strict=True):
            count = None if keep is None else Budget(keep).count(n)
            if count is not None and count >= n:
                found.append(torch.arange(n))
                continue
            frames, area = config.vision_config.temporal_patch_size, config.vision_config.patch_size**2
            shape = unit, own.shape[1] // (frames * area), frames, area
            tokens = VisualTokens(own.reshape(n, -1), (raster,), kind, pixel_shape=shape)
            answers = run_policy(self.settings.policy.chooser, [tokens], [count])
            refuse_features(self.settings.name, answers)
            found.append(answers[0].indices)
        return found

    def _image_processor(self, kind: Kind) -> Any:
        processor = self.info.get_hf_processor()
        return processor.image_processor if kind == "image" else processor.video_processor


def _normalized(pixels: Tensor, processor: Any) -> Tensor:
    """Patches, (M, C * T * P * P), as the tower gets them; the engine may leave normalising to the device."""
    if pixels.is_floating_point():
        return pixels
    mean, std = (torch.tensor(each)[:, None] for each in (processor.image_mean, processor.image_std))
    values = pixels.float().unflatten(1, (len(mean), -1)) * processor.rescale_factor
    normalized: Tensor = ((values - mean) / std).flatten(1)
    return normalized


class PixelTower:
    """Hooks on the vision tower of a Qwen. It gets the patches that stay, with the positions of the whole picture.

    Behind it the raster is whole again, with zeros where tokens have left, so that the stock model splits it as always.

    Args:
        tower: of the stock model.
    """

    def __init__(self, tower: Any):
        self.tower = tower
        self._keep: Tensor | None = None
        self._kept: KeptTokens | None = None
        tower.register_forward_pre_hook(self._enter, with_kwargs=True)
        tower.register_forward_hook(self._leave)

    @contextmanager
    def keeping(self, kept: list[Tensor], lengths: list[int]) -> Iterator[None]:
        """Run the tower on some tokens only.

        Args:
            kept: (K,) indices of those of each input.
            lengths: tokens of each input.
        """
        masks = [torch.zeros(n, dtype=torch.bool).index_fill_(0, k, True) for k, n in zip(kept, lengths, strict=True)]
        keep = torch.cat(masks)
        self._keep = None if bool(keep.all()) else keep
        try:
            yield
        finally:
            self._keep = self._kept = None

    def _enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._keep is None:
            return None
        pixels, grid_thw = (*args, *(kwargs[name] for name in ("grid_thw",) if name in kwargs))
        grids = torch.as_tensor(grid_thw).cpu()
        self._kept = kept = KeptTokens(tower_facts(self.tower), grids, self._keep)
        left = pixels.index_select(0, kept.patches.to(pixels.device))
        return (left,), {"grid_thw": grid_thw, "encoder_metadata": _metadata(self.tower, kept)}

    def _leave(self, module: Any, args: Any, output: Tensor) -> Tensor | None:
        kept = self._kept
        return None if kept is None else whole_raster(output, kept.tokens, len(kept.keep))


def tower_facts(tower: Any) -> Any:
    """What the facts of the families read of a tower of transformers, of the engine's."""
    names = ("spatial_merge_size", "window_size", "patch_size")
    return SimpleNamespace(**{name: getattr(tower, name) for name in names if hasattr(tower, name)})


def _metadata(tower: Any, kept: KeptTokens) -> dict[str, Any]:
    """What the engine's tower derives from sizes, for the patches that are left."""
    whole = tower.prepare_encoder_metadata(kept.grids.tolist())
    own = kept.arguments({}, torch.device("cpu"))
    unit = tower.spatial_merge_size**2
    if "window_index" not in whole:
        rows = {name: _rows(whole[name], kept.patches) for name in ("rotary_pos_emb_cos", "rotary_pos_emb_sin")}
        if "pos_embeds" in whole:
            rows["pos_embeds"] = _rows(whole["pos_embeds"], kept.patches)
        return {**whole, **rows, **_borders(tower, own["cu_seqlens"])}
    places = kept.in_order_of_tower()
    patches = (places[:, None] * unit + torch.arange(unit)).flatten()
    device = whole["window_index"].device
    rows = {name: _rows(whole[name], patches) for name in ("rotary_pos_emb_cos", "rotary_pos_emb_sin")}
    order = {
        "window_index": own["window_index"].to(device),
        "reverse_indices": own["window_index"].argsort().to(device),
    }
    full, window = _borders(tower, own["cu_seqlens"]), _borders(tower, own["cu_window_seqlens"])
    return {
        **rows, **order, "cu_seqlens": full["cu_seqlens"], "cu_window_seqlens": window["cu_seqlens"],
        "max_seqlen_full": full["max_seqlen"], "max_seqlen_window": window["max_seqlen"],
        "sequence_lengths_full": full["sequence_lengths"], "sequence_lengths_window": window["sequence_lengths"],
    }  # fmt: skip


def _rows(values: Tensor, index: Tensor) -> Tensor:
    return values.index_select(0, index.to(values.device))


def _borders(tower: Any, borders: Tensor) -> dict[str, Any]:
    """Borders of attention as the engine's attention wants them, (pieces + 1,) int32 on the host."""
    if not hasattr(tower, "fp8_padded_hidden_size"):  # Qwen2-VL
        borders = borders.to(tower.device)
        return {"cu_seqlens": borders, "max_seqlen": tower.compute_attn_mask_seqlen(borders)}
    backend, array = tower.attn_backend, borders.numpy()
    return {
        "sequence_lengths": MMEncoderAttention.maybe_compute_seq_lens(backend, array, tower.device),
        "max_seqlen": torch.tensor(MMEncoderAttention.compute_max_seqlen(backend, array), dtype=torch.int32),
        "cu_seqlens": MMEncoderAttention.maybe_recompute_cu_seqlens(
            backend, array, tower.hidden_size, tower.tp_size, tower.device,
            fp8_padded_hidden_size=tower.fp8_padded_hidden_size,
        ),
    }  # fmt: skip
