"""LLaVA-1.5 in vLLM: a CLIP or SigLIP tower whose attention can be read, one raster per picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..patches.families.llava import TOWERS, tile_grid
from .architectures import CLIP
from .clip_tower import ClipTower
from .processing import PruningProcessor
from .pruned import Part


class Processor(PruningProcessor, LlavaMultiModalProcessor):
    """Prompts with as many placeholders as are kept."""

    readable = CLIP


def check_tower(ctx: Any) -> None:
    """Raise `ValueError` unless the vision tower is one of those that can be read."""
    vision = ctx.get_hf_config().vision_config.model_type
    if vision not in TOWERS:
        raise ValueError(f"LLaVA with a tower of type {vision!r} cannot be pruned here; accepted: CLIP, SigLIP")


def _info(ctx: Any) -> LlavaProcessingInfo:
    check_tower(ctx)
    return LlavaProcessingInfo(ctx)


@MULTIMODAL_REGISTRY.register_processor(Processor, info=_info, dummy_inputs=LlavaDummyInputsBuilder)
class PrunedLlava(ClipTower, LlavaForConditionalGeneration):
    """`LlavaForConditionalGeneration` that keeps what a policy chooses of each picture.

    Positions count the tokens that are kept (`positions="compact"`): the engine numbers 1-D positions itself.
    """

    def parts(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        name = "pixel_values" if kwargs.get("pixel_values") is not None else "image_embeds"
        inputs, (_, height, width) = kwargs[name], tile_grid(self.config)
        step = max(1, self.most_at_once // (height * width))
        for i in range(0, len(inputs), step):
            self.begin()
            yield Part("image", len(inputs[i : i + step]), {name: inputs[i : i + step]}, {})

    def tiles(self, part: Part) -> list[int]:
        return [1] * len(next(iter(part.arguments.values())))
