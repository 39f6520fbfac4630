"""Gemma 4 in vLLM: pictures of any raster; each frame of a video is a picture behind its time stamp."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.nn.utils.rnn import pad_sequence
from vllm.model_executor.models.gemma4_mm import (
    Gemma4DummyInputsBuilder,
    Gemma4ForConditionalGeneration,
    Gemma4MultiModalProcessor,
    Gemma4ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from .processing import PruningProcessor
from .pruned import NoTowerGraphs, Part, PrunedModel, chunks


class Processor(PruningProcessor, Gemma4MultiModalProcessor):
    """Prompts with as many placeholders as are kept."""


class PrunedRasters(NoTowerGraphs, PrunedModel):
    """Mixed in before a stock Gemma 4, whose patches come with their x and y, and with padding."""

    #: Patches along one side of a token.
    pooled: int

    def parts(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        # In the order in which the stock model answers.
        for name in kwargs:
            if name == "pixel_values":
                yield from self._pictures(kwargs)
            elif name == "pixel_values_videos":
                yield from self._videos(kwargs)

    def _pictures(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        names = ("pixel_values", "pixel_position_ids")
        positions = kwargs["pixel_position_ids"]
        tokens = [int((each >= 0).all(-1).sum()) // self.pooled**2 for each in positions]
        for start, stop in chunks(tokens, self.most_at_once):
            of_these = pad_sequence(list(positions[start:stop]), batch_first=True, padding_value=-1)
            arguments = {name: kwargs[name][start:stop] for name in names}
            yield Part("image", stop - start, arguments, {"image_position_ids": of_these})

    def _videos(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        names, start = ("pixel_values_videos", "pixel_position_ids_videos"), 0
        for frames in kwargs["video_frame_counts"].reshape(-1, 1):
            stop = start + int(frames)
            arguments = {name: kwargs[name][start:stop] for name in names}
            sizes = {"video_position_ids": arguments["pixel_position_ids_videos"], "num_frames_per_video": frames}
            yield Part("video", 1, {**arguments, "video_frame_counts": frames}, sizes)
            start = stop


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Gemma4ProcessingInfo, dummy_inputs=Gemma4DummyInputsBuilder)
class PrunedGemma4(PrunedRasters, Gemma4ForConditionalGeneration):
    """`Gemma4ForConditionalGeneration` that keeps what a policy chooses of each picture or video."""

    @property
    def pooled(self) -> int:  # type: ignore[override]
        kernel: int = self.config.vision_config.pooling_kernel_size
        return kernel
