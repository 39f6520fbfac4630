"""Qwen3-VL in vLLM: each frame of a video is a picture behind its time stamp; deepstack planes follow the picks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from .pixels import PixelProcessor
from .qwen import PrunedQwen


class Processor(PixelProcessor, Qwen3VLMultiModalProcessor):
    pass


class PrunedFrames(PrunedQwen):
    """Mixed in before a stock Qwen whose prompts have text between the frames of a video."""

    def visual_width(self, embedding: Tensor) -> int:
        width: int = self.visual_dim  # type: ignore[attr-defined]
        return width

    def media(self, input_tokens: list[int], mm_features: Any) -> Iterator[tuple[int, int, int]]:
        config = self.config  # type: ignore[attr-defined]
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            frames = self._iter_mm_grid_hw(  # type: ignore[attr-defined]
                input_tokens,
                [feature],
                video_token_id=config.video_token_id,
                vision_start_token_id=config.vision_start_token_id,
                vision_end_token_id=config.vision_end_token_id,
                spatial_merge_size=config.vision_config.spatial_merge_size,
            )
            for offset, h, w, kept in frames:
                # Of a picture, the stock count is that of the whole.
                yield offset, feature.mm_position.length if feature.modality == "image" else kept, max(h, w)


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder)
class PrunedQwen3VL(PrunedFrames, Qwen3VLForConditionalGeneration):
    """`Qwen3VLForConditionalGeneration` that keeps what a policy chooses of each picture or video."""
