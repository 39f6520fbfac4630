"""Qwen3.5 in vLLM, dense and with experts: as Qwen3-VL, over a decoder most of whose layers are linear attention."""

from __future__ import annotations

from vllm.model_executor.models.qwen3_5 import (
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeProcessingInfo,
    Qwen3_5ProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import Qwen3VLDummyInputsBuilder
from vllm.multimodal import MULTIMODAL_REGISTRY

from .qwen3_vl import Processor, PrunedFrames


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Qwen3_5ProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder)
class PrunedQwen3_5(PrunedFrames, Qwen3_5ForConditionalGeneration):
    """`Qwen3_5ForConditionalGeneration` that keeps what a policy chooses of each picture or video."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Qwen3_5MoeProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PrunedQwen3_5Moe(PrunedFrames, Qwen3_5MoeForConditionalGeneration):
    """`Qwen3_5MoeForConditionalGeneration` that keeps what a policy chooses of each picture or video."""
