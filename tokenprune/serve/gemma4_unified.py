"""Gemma 4 without a vision encoder, in vLLM: a patch is a token."""

from __future__ import annotations

from vllm.model_executor.models.gemma4_unified import (
    Gemma4DummyInputsBuilder,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from .gemma4 import Processor, PrunedRasters


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Gemma4UnifiedProcessingInfo, dummy_inputs=Gemma4DummyInputsBuilder
)
class PrunedGemma4Unified(PrunedRasters, Gemma4UnifiedForConditionalGeneration):
    """`Gemma4UnifiedForConditionalGeneration` that keeps what a policy chooses of each picture or video."""

    pooled = 1
