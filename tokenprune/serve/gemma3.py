"""Gemma 3 in vLLM: 256 tokens for each picture, and for each crop of it with pan and scan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm.model_executor.models.gemma3_mm import (
    Gemma3DummyInputsBuilder,
    Gemma3ForConditionalGeneration,
    Gemma3MultiModalProcessor,
    Gemma3ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from .architectures import CLIP
from .clip_tower import ClipTower
from .pruned import NoTowerGraphs, Part
from .tiles import PrunedTiles, TileProcessor


class Processor(TileProcessor, Gemma3MultiModalProcessor):
    """Prompts with as many placeholders as are kept."""

    readable = CLIP

    def tile_tokens(self) -> int:
        tokens: int = self.info.get_hf_config().mm_tokens_per_image
        return tokens


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Gemma3ProcessingInfo, dummy_inputs=Gemma3DummyInputsBuilder)
class PrunedGemma3(NoTowerGraphs, PrunedTiles, ClipTower, Gemma3ForConditionalGeneration):
    """`Gemma3ForConditionalGeneration` that keeps what a policy chooses of each picture or crop."""

    @property
    def tile_tokens(self) -> int:  # type: ignore[override]
        tokens: int = self.config.mm_tokens_per_image
        return tokens

    def parts(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        for part in self.tile_parts("image", kwargs, ("pixel_values", "num_patches")):
            self.begin()
            yield part

    def tiles(self, part: Part) -> list[int]:
        return [1] * len(part.arguments["pixel_values"])
