"""LLaVA-1.5 in vLLM: a CLIP or SigLIP tower whose attention can be read, one raster per picture."""

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

from ..patches.encoder_capture import read_attention
from ..patches.families.llava import tile_grid
from .processing import PruningProcessor
from .pruned import Part, PrunedModel
from .settings import CLIP


class Processor(PruningProcessor, LlavaMultiModalProcessor):
    """Prompts with as many placeholders as are kept."""

    readable = CLIP


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
        self._spec = self.settings.policy.encoder_spec()
        self._captured: dict[str, list[Tensor]] = {}
        if self._spec is None:
            return
        if self._spec.rows is not None or self._spec.keys is not None:
            # The engine builds the tower up to the layer that the projector reads.
            attention = self.vision_tower.vision_model.encoder.layers[-1].self_attn
            attention.qkv_proj.register_forward_hook(self._capture_attention)
            self._attention = [attention]  # a list: it is no submodule of ours
        if self._spec.features:
            self.multi_modal_projector.register_forward_pre_hook(self._capture_features)

    def parts(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        name = "pixel_values" if kwargs.get("pixel_values") is not None else "image_embeds"
        inputs, grid = kwargs[name], tile_grid(self.config)
        step = max(1, self.most_at_once // (grid[1] * grid[2]))
        for i in range(0, len(inputs), step):
            part = inputs[i : i + step]
            self._captured = {}
            yield Part("image", {name: part}, [grid] * len(part), [None] * len(part))

    def encoder_values(self, n: int) -> list[dict[str, Any]]:
        fields: list[dict[str, Any]] = [{} for _ in range(n)]
        for name, values in self._captured.items():
            for each, value in zip(fields, torch.cat(values), strict=True):
                each[name] = value
                if name == "encoder_features":
                    each["project"] = self._project
        self._captured = {}
        return fields

    def _project(self, features: Tensor) -> Tensor:
        """The projector, without capturing what it is given."""
        captured = self._captured
        projected: Tensor = self.multi_modal_projector(features)
        self._captured = captured
        return projected

    def _capture(self, name: str, values: Tensor) -> None:
        self._captured.setdefault(f"encoder_{name}", []).append(values)

    def _capture_features(self, module: Any, args: tuple[Tensor, ...]) -> None:
        if args[0].dim() == 3:
            self._capture("features", args[0])

    def _capture_attention(self, module: Any, args: Any, output: tuple[Tensor, Any]) -> None:
        attention = self._attention[0]
        assert self._spec is not None
        has_cls = self.config.vision_feature_select_strategy == "default"
        heads = attention.num_heads_per_partition
        query, key, _ = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in output[0].chunk(3, -1))
        for name, values in read_attention(self._spec, query, key, has_cls, attention.scale).items():
            values = self._over_ranks(values)
            self._capture(name, values[..., 0] if name == "attention" else values)

    def _over_ranks(self, values: Tensor) -> Tensor:
        """The mean over all heads of what is the mean over this rank's."""
        # Contiguous, since NCCL is handed the bare memory.
        if self._attention[0].num_heads_per_partition == self._attention[0].num_heads:
            return values
        mean: Tensor = tensor_model_parallel_all_reduce(values.contiguous()) / get_tensor_model_parallel_world_size()
        return mean
