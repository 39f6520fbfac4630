"""LLaVA-NeXT in vLLM: a thumbnail, and a mosaic of crops with a newline token after each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..patches.families.llava import tile_grid
from .architectures import CLIP
from .clip_tower import ClipTower
from .llava import check_tower
from .processing import PruningProcessor
from .pruned import Part, chunks


class Processor(PruningProcessor, LlavaNextMultiModalProcessor):
    """Prompts with as many placeholders as are kept."""

    readable = CLIP


def _info(ctx: Any) -> LlavaNextProcessingInfo:
    check_tower(ctx)
    return LlavaNextProcessingInfo(ctx)


class TiledPictures(ClipTower):
    """Mixed in before a stock model that cuts pictures into tiles: as many go through the tower as a batch may hold."""

    def picture_parts(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        """Pictures in parts of at most `most_at_once` tokens before pruning, or of one picture."""
        name = "pixel_values" if kwargs.get("pixel_values") is not None else "image_embeds"
        inputs, sizes = kwargs[name], kwargs.get("image_sizes")
        _, height, width = tile_grid(self.config)  # type: ignore[attr-defined]
        tokens = [len(each) * height * width if name == "pixel_values" else len(each) for each in inputs]
        for start, stop in chunks(tokens, self.most_at_once):
            self.begin()
            arguments: dict[str, Any] = {name: inputs[start:stop]}
            part: dict[str, Any] = {}
            if sizes is not None:
                arguments["image_sizes"] = sizes[start:stop]
                part["image_sizes"] = [tuple(size) for size in sizes[start:stop].tolist()]
            yield Part("image", stop - start, arguments, part)

    def tiles(self, part: Part) -> list[int]:
        return [len(each) for each in next(iter(part.arguments.values()))]


@MULTIMODAL_REGISTRY.register_processor(Processor, info=_info, dummy_inputs=LlavaDummyInputsBuilder)
class PrunedLlavaNext(TiledPictures, LlavaNextForConditionalGeneration):
    """`LlavaNextForConditionalGeneration` that keeps what a policy chooses of each picture."""

    def parts(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        return self.picture_parts(kwargs)
