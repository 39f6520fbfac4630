"""Qwen2.5-VL in vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..patches.families.base import Kind
from .pixels import PixelProcessor
from .qwen import PrunedQwen


class Processor(PixelProcessor, Qwen2_5_VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PrunedQwen2_5_VL(PrunedQwen, Qwen2_5_VLForConditionalGeneration):
    """`Qwen2_5_VLForConditionalGeneration` that keeps what a policy chooses of each picture or video."""

    def seconds(self, kind: Kind, part: Mapping[str, Any], n: int) -> list[float]:
        if kind == "image":
            return [0.0] * n
        per_second = self.config.vision_config.tokens_per_second
        given = part.get("second_per_grid_ts")
        return [per_second * float(each) for each in ([1.0] * n if given is None else given)]

    def media(self, input_tokens: list[int], mm_features: Any) -> Iterator[tuple[int, int, int]]:
        ordered = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        for feature, (offset, t, h, w, step) in zip(ordered, self.iter_mm_grid_thw(ordered), strict=True):
            yield offset, feature.mm_position.length, max(int((t - 1) * step) + 1, h, w)
