"""Mistral 3 in vLLM: any resolution, with a break token, which is text, between the rows of a picture.

How many tokens of a row stay is known after the selection, and the prompt is written before it. So its placeholders
stand for the breaks as well, and the model puts the embeddings of the breaks where they belong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.mistral3 import (
    Mistral3DummyInputsBuilder,
    Mistral3ForConditionalGeneration,
    Mistral3MultiModalProcessor,
    Mistral3ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing.processor import PromptUpdateDetails

from .pieces import Piece
from .processing import Cut, PruningProcessor
from .pruned import Part, PrunedModel, chunks

#: Beside each picture on its way to the model: the id of the break token.
BREAK = "tokenprune_break_image"


class Processor(PruningProcessor, Mistral3MultiModalProcessor):
    """Prompts with a placeholder for each token that is kept and for each break."""

    def own_fields(self, modality: str) -> dict[str, Tensor]:
        token = self.info.get_hf_processor().image_break_token
        return {BREAK: torch.tensor(self.info.get_tokenizer().get_vocab()[token])}

    def _cut(self, whole: Any, cut: Cut) -> Any:
        (token,) = self.visual_ids()
        n = sum(each == token for each in whole.full)
        assert cut.budget is not None
        count = cut.budget.count(n)
        if count == n:
            return whole
        # All but the last, which closes the picture.
        breaks = len(whole.full) - n - 1
        return PromptUpdateDetails.select_token_id([token] * (count + breaks) + [whole.full[-1]], token)


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Mistral3ProcessingInfo, dummy_inputs=Mistral3DummyInputsBuilder)
class PrunedMistral3(PrunedModel, Mistral3ForConditionalGeneration):
    """`Mistral3ForConditionalGeneration` that keeps what a policy chooses of each picture."""

    def embed_multimodal(self, **kwargs: Any) -> Any:
        self._break = kwargs.get(BREAK)
        return super().embed_multimodal(**kwargs)

    def parts(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        pictures = kwargs["pixel_values"]
        sizes = [tuple(picture.shape[-2:]) for picture in pictures]
        patch = self.config.vision_config.patch_size * self.config.spatial_merge_size
        tokens = [math.prod(side // patch for side in size) for size in sizes]
        for start, stop in chunks(tokens, self.most_at_once):
            yield Part(
                "image", stop - start, {"pixel_values": pictures[start:stop]}, {"image_sizes": sizes[start:stop]}
            )

    def with_separators(self, rows: Tensor, indices: Tensor, piece: Piece) -> Tensor:
        if piece.tokens is None or piece.shape.grids is None:
            return rows
        _, height, width = piece.shape.grids[0]
        assert self._break is not None
        row = self.language_model.embed_input_ids(self._break[:1].to(rows.device))
        breaks = torch.arange(1, height) * (width + 1) - 1
        order = torch.cat([indices + indices // width, breaks]).argsort()
        return torch.cat([rows, row.to(rows).expand(height - 1, -1)])[order.to(rows.device)]
