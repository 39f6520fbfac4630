"""Qwen2-VL in vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from .pixels import PixelProcessor
from .qwen import PrunedQwen


class Processor(PixelProcessor, Qwen2VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Qwen2VLProcessingInfo, dummy_inputs=Qwen2VLDummyInputsBuilder)
class PrunedQwen2VL(PrunedQwen, Qwen2VLForConditionalGeneration):
    """`Qwen2VLForConditionalGeneration` that keeps what a policy chooses of each picture or video."""

    def seconds(self, kind: Any, part: Any, n: int) -> list[float]:
        return [1.0] * n  # from frame to frame by one, whatever the clock says

    def media(self, input_tokens: list[int], mm_features: Any) -> Iterator[tuple[int, int, int]]:
        ordered = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        for feature, (offset, t, h, w, _) in zip(ordered, self.iter_mm_grid_thw(ordered), strict=True):
            yield offset, feature.mm_position.length, max(t, h, w)
