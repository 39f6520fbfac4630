"""InternVL (the Hugging Face port) in vLLM: tiles of one size, merged patches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from .architectures import UNHEARD
from .pruned import Part
from .tiles import PrunedTiles, TileProcessor


class Processor(TileProcessor, InternS1MultiModalProcessor):
    """Prompts with as many placeholders as are kept."""

    readable = UNHEARD

    def tile_tokens(self) -> int:
        tokens: int = self.info.get_hf_processor().image_seq_length
        return tokens

    def visual_ids(self) -> set[int]:
        vocabulary = self.info.get_tokenizer().get_vocab()
        return super().visual_ids() | {vocabulary[self.info.get_hf_processor().video_token]}


@MULTIMODAL_REGISTRY.register_processor(Processor, info=InternS1ProcessingInfo, dummy_inputs=InternS1DummyInputsBuilder)
class PrunedInternVL(PrunedTiles, InternS1ForConditionalGeneration):
    """`InternVLForConditionalGeneration` that keeps what a policy chooses of each tile or frame."""

    @property
    def tile_tokens(self) -> int:  # type: ignore[override]
        tokens: int = self.num_image_token
        return tokens

    def parts(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        # In the order in which the stock model answers.
        for name in kwargs:
            if name == "pixel_values":
                yield from self.tile_parts("image", kwargs, (name, "image_num_patches"))
            elif name == "pixel_values_videos":
                yield from self.tile_parts("video", kwargs, (name, "video_num_patches"))
            elif name == "image_embeds":
                for features in kwargs[name]:
                    yield Part("image", 1, {name: [features]}, {})
