"""LLaVA-1.5 in vLLM: a CLIP or SigLIP tower whose attention can be heard, one raster per picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..ops import attention_received
from ..patches.families.llava import tile_grid
from .processing import PruningProcessor
from .pruned import Part, PrunedModel
from .settings import CLIP


class Processor(PruningProcessor, LlavaMultiModalProcessor):
    heard = CLIP


def _info(ctx: Any) -> LlavaProcessingInfo:
    vision = ctx.get_hf_config().vision_config.model_type
    if vision not in ("clip_vision_model", "siglip_vision_model"):
        raise ValueError(f"LLaVA with a tower of type {vision!r} cannot be pruned here; accepted: CLIP, SigLIP")
    return LlavaProcessingInfo(ctx)


@MULTIMODAL_REGISTRY.register_processor(Processor, info=_info, dummy_inputs=LlavaDummyInputsBuilder)
class PrunedLlava(PrunedModel, LlavaForConditionalGeneration):
    """`LlavaForConditionalGeneration` that keeps what a policy chooses of each picture.

    Positions count the tokens that are kept (`positions="compact"`): the engine numbers 1-D positions itself.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._spec = self.settings.policy.encoder()
        self._noted: dict[str, list[Tensor]] = {}
        if self._spec is None:
            return
        if self._spec.rows is not None or self._spec.keys is not None:
            # The engine builds the tower up to the layer that the projector reads.
            attention = self.vision_tower.vision_model.encoder.layers[-1].self_attn
            attention.qkv_proj.register_forward_hook(self._note_attention)
            self._attention = [attention]  # a list: it is no submodule of ours
        if self._spec.features:
            self.multi_modal_projector.register_forward_pre_hook(self._note_features)

    def parts(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        name = "pixel_values" if kwargs.get("pixel_values") is not None else "image_embeds"
        inputs, grid = kwargs[name], tile_grid(self.config)
        step = max(1, self.most_at_once // (grid[1] * grid[2]))
        for i in range(0, len(inputs), step):
            part = inputs[i : i + step]
            self._noted = {}
            yield "image", {name: part}, [grid] * len(part), [None] * len(part)

    def heard_of(self, n: int) -> list[dict[str, Any]]:
        fields: list[dict[str, Any]] = [{} for _ in range(n)]
        for name, values in self._noted.items():
            for each, value in zip(fields, torch.cat(values), strict=True):
                each[name] = value
                if name == "encoder_features":
                    each["project"] = self.multi_modal_projector_of
        self._noted = {}
        return fields

    def multi_modal_projector_of(self, features: Tensor) -> Tensor:
        """The projector, which notes nothing this time."""
        noted = self._noted
        projected = self.multi_modal_projector(features)
        self._noted = noted
        return projected

    def _note(self, name: str, values: Tensor) -> None:
        self._noted.setdefault(name, []).append(values)

    def _note_features(self, module: Any, args: tuple[Tensor, ...]) -> None:
        if args[0].dim() == 3:
            self._note("encoder_features", args[0])

    def _note_attention(self, module: Any, args: Any, output: tuple[Tensor, Any]) -> None:
        spec, attention = self._spec, self._attention[0]
        assert spec is not None
        cls = int(self.config.vision_feature_select_strategy == "default")
        heads = attention.num_heads_per_partition
        query, key, _ = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in output[0].chunk(3, -1))
        if spec.keys is not None:
            self._note("encoder_keys", self._over_ranks(key.mean(1))[:, cls:])
        rows = spec.rows if cls or spec.rows != "cls" else spec.without_cls
        if rows is None:
            return
        start, stop = (0, 1) if rows == "cls" else (0 if spec.cls_query else cls, query.shape[2])
        received = attention_received(
            query, key, rows=torch.arange(start, stop, device=query.device), scaling=attention.scale
        )
        self._note("encoder_attention", self._over_ranks(received)[:, cls:])

    def _over_ranks(self, values: Tensor) -> Tensor:
        """The mean over all heads of what is the mean over this rank's."""
        if self._attention[0].num_heads_per_partition == self._attention[0].num_heads:
            return values
        return tensor_model_parallel_all_reduce(values) / get_tensor_model_parallel_world_size()
