"""What the Qwens have in common in vLLM: rasters of any size, mRoPE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..patches.families.base import EncoderValues, Kind
from ..patches.families.merged_patches import merged_grid, square_merge
from ..policies.types import Grid
from .pixels import PixelTower, tower_facts
from .positions import Offsets, number
from .pruned import Asked, NoTowerGraphs, Part, PrunedModel, chunks

#: Per kind, the rasters of its inputs, and the arguments that hold all inputs' rows one after the other.
ARGUMENTS: dict[Kind, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "image": ("image_grid_thw", ("pixel_values",), ("image_embeds",)),
    "video": ("video_grid_thw", ("pixel_values_videos",), ("video_embeds",)),
}


class PrunedQwen(NoTowerGraphs, PrunedModel):
    """Mixed in before a stock Qwen: survivors keep the positions they have in the whole prompt."""

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ValueError(
                "pipeline parallelism is not supported with mRoPE: only its first stage learns where the tokens that "
                "are kept stand; use --tensor-parallel-size"
            )
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        device = next(self.parameters()).device  # type: ignore[attr-defined]
        self.offsets = Offsets(self.most_at_once, device)
        spec, by_pixels = self.settings.policy.encoder_spec(), "pixels" in self.settings.policy.stages
        reads_patches = spec is not None and spec.patches
        if (by_pixels or reads_patches) and self.use_data_parallel:  # type: ignore[attr-defined]
            raise ValueError(
                f"policy {self.settings.name!r} acts on the patches of the vision tower, which --mm-encoder-tp-mode "
                "data splits by whole pictures; leave it out"
            )
        self._pixel_tower = PixelTower(self.visual) if by_pixels else None  # type: ignore[attr-defined]
        self._patches: list[Tensor] = []
        if reads_patches:
            merger = self.visual.merger  # type: ignore[attr-defined]
            # The merger itself may be compiled, and then calls no hooks.
            first = merger.ln_q if hasattr(merger, "ln_q") else merger.norm
            first.register_forward_pre_hook(self._read_patches)

    def _read_patches(self, module: Any, args: tuple[Tensor, ...]) -> None:
        self._patches.append(args[0].reshape(-1, args[0].shape[-1]))

    def encoder_values(self, part: Part, lengths: list[int]) -> list[dict[str, Any]]:
        if not self._patches:
            return super().encoder_values(part, lengths)
        assert self.family.encoder is not None
        facts = tower_facts(self.visual)  # type: ignore[attr-defined]
        base = SimpleNamespace(config=self.config, get_submodule=lambda path: facts)  # type: ignore[attr-defined]
        values = EncoderValues(base, part.kind, torch.cat(self._patches)[None], lengths, part.sizes)
        self._patches.clear()
        return [{"encoder_patches": each} for each in self.family.encoder.regroup(values)]

    @contextmanager
    def tower_takes(self, part: Part, asked: Sequence[Asked]) -> Iterator[None]:
        self._patches.clear()
        kept = [each.kept for each in asked if each.kept is not None]
        if self._pixel_tower is None or not kept or part.coordinates is None:
            yield
            return
        with self._pixel_tower.keeping(kept, [len(each) for each in part.coordinates]):
            yield

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        embeddings = self.offsets.split(list(multimodal_embeddings or ()), is_multimodal)
        return super().embed_input_ids(input_ids, embeddings or None, is_multimodal=is_multimodal)  # type: ignore[misc, no-any-return]

    def forward(self, input_ids: Tensor | None, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        if positions.dim() == 2:
            positions = self.offsets.add(positions)
        return super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]

    def parts(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        merge = self.config.vision_config.spatial_merge_size**2  # type: ignore[attr-defined]
        # In the order in which the stock model answers.
        kinds = dict.fromkeys(kind for name in kwargs for kind in ARGUMENTS if name in _flat(kind))
        for kind in kinds:
            of_grids, patches, tokens = ARGUMENTS[kind]
            grids = kwargs[of_grids]
            sizes = grids.prod(-1).tolist()
            others = {n for other in ARGUMENTS if other != kind for n in (ARGUMENTS[other][0], *_flat(other))}
            for start, stop in chunks([size // merge for size in sizes], self.most_at_once):
                first, last = sum(sizes[:start]), sum(sizes[:stop])
                part = {}
                for name, value in kwargs.items():
                    if name in patches:
                        part[name] = value[first:last]
                    elif name in tokens:
                        part[name] = value[first // merge : last // merge]
                    elif name not in others:
                        part[name] = value[start:stop] if _per_input(value, len(sizes)) else value
                factor = square_merge(self.config, kind)  # type: ignore[attr-defined]
                rasters = [merged_grid(grid, factor) for grid in grids[start:stop].tolist()]
                steps = self.seconds(kind, part, stop - start)
                coordinates = [self.coordinates(r, s) for r, s in zip(rasters, steps, strict=True)]
                yield Part(kind, stop - start, part, {of_grids: grids[start:stop]}, coordinates)

    def seconds(self, kind: Kind, part: Mapping[str, Any], n: int) -> list[float]:
        """How far the temporal position goes on from frame to frame, of each input."""
        return [0.0] * n

    @staticmethod
    def coordinates(raster: Grid, step: float) -> Tensor:
        """(N, 3) of the tokens of an input."""
        t, h, w = (torch.arange(size) for size in raster)
        return torch.stack(torch.meshgrid((t * step).long(), h, w, indexing="ij"), -1).view(-1, 3)

    def media(self, input_tokens: list[int], mm_features: Any) -> Iterator[tuple[int, int, int]]:
        """(offset, kept, span) of each picture or frame in the prompt, in order."""
        raise NotImplementedError

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Any) -> tuple[Tensor, int]:
        return number(len(input_tokens), self.media(input_tokens, mm_features))


def _flat(kind: Kind) -> tuple[str, ...]:
    return ARGUMENTS[kind][1] + ARGUMENTS[kind][2]


def _per_input(value: Any, n: int) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.dim() > 0 and len(value) == n)
