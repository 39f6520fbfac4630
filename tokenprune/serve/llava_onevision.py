"""LLaVA-OneVision in vLLM: pictures as in LLaVA-NeXT, and videos of pooled frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from .architectures import CLIP
from .llava import check_tower
from .llava_next import TiledPictures
from .processing import PruningProcessor
from .pruned import Part


class Processor(PruningProcessor, LlavaOnevisionMultiModalProcessor):
    """Prompts with as many placeholders as are kept."""

    readable = CLIP


def _info(ctx: Any) -> LlavaOnevisionProcessingInfo:
    check_tower(ctx)
    return LlavaOnevisionProcessingInfo(ctx)


@MULTIMODAL_REGISTRY.register_processor(Processor, info=_info, dummy_inputs=LlavaOnevisionDummyInputsBuilder)
class PrunedLlavaOnevision(TiledPictures, LlavaOnevisionForConditionalGeneration):
    """`LlavaOnevisionForConditionalGeneration` that keeps what a policy chooses of each picture or video."""

    def parts(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        # In the order in which the stock model answers.
        for name in kwargs:
            if name in ("pixel_values", "image_embeds"):
                yield from self.picture_parts(kwargs)
            elif name == "pixel_values_videos":
                for video in kwargs[name]:
                    self.begin()
                    yield Part("video", 1, {name: video[None]}, {})
