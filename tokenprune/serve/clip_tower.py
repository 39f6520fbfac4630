"""What policies read of a CLIP or SigLIP tower in vLLM, as the families' facts regroup it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce

from ..patches.encoder_capture import read_attention
from ..patches.families.base import EncoderValues
from ..patches.padded_patches import padded_patches
from .pruned import Part, PrunedModel


class ClipTower(PrunedModel):
    """Mixed in before a stock model with `vision_tower` and `multi_modal_projector`."""

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._spec = self.settings.policy.encoder_spec()
        self._captured: dict[str, list[Tensor]] = {}
        if self._spec is None:
            return
        if self._spec.rows is not None or self._spec.keys is not None:
            # The engine builds the tower up to the layer that the projector reads.
            attention = self.vision_tower.vision_model.encoder.layers[-1].self_attn  # type: ignore[attr-defined]
            attention.qkv_proj.register_forward_hook(self._capture_attention)
            self._attention = [attention]  # a list: it is no submodule of ours
        assert self.family.encoder is not None
        if self._spec.features and self.family.encoder.projector is not None:
            self.multi_modal_projector.register_forward_pre_hook(self._capture_features)  # type: ignore[attr-defined]

    def begin(self) -> None:
        """Forget what was captured of the part before."""
        self._captured = {}

    def tiles(self, part: Part) -> list[int]:
        """How many pictures or frames the tower took for each visual input, padding included."""
        raise NotImplementedError

    def encoder_values(self, part: Part, lengths: list[int]) -> list[dict[str, Any]]:
        fields: list[dict[str, Any]] = [{} for _ in lengths]
        for name, values in self._captured.items():
            by_input = torch.cat(values).split(self.tiles(part))
            for i, (each, tiles) in enumerate(zip(fields, by_input, strict=True)):
                value = self._regrouped(part, i, tiles, lengths[i])
                each[name] = value[:, 0] if name == "encoder_attention" else value
                if name == "encoder_features":
                    each["project"] = self._project
        self._captured = {}
        for each, padding in zip(fields, self._padding(part, lengths) or [], strict=False):
            each["is_padding"] = padding
        return fields

    def _padding(self, part: Part, lengths: list[int]) -> list[Tensor] | None:
        """(N,) bool of each visual input, True at patches that pad it; None where there are none or nobody asks."""
        encoder, pixels = self.family.encoder, part.arguments.get("pixel_values")
        if self._spec is None or not self._spec.padding or encoder is None or encoder.projector is None:
            return None
        return padded_patches(self._base(), self.family, part.kind, lengths, {"pixel_values": pixels, **part.sizes})

    def _regrouped(self, part: Part, i: int, tiles: Tensor, length: int) -> Tensor:
        """(N, C) values of a visual input's candidates, of (tiles, tokens, C) of the tower."""
        assert self.family.encoder is not None
        sizes = {name: value[i : i + 1] for name, value in part.sizes.items()}
        return self.family.encoder.regroup(EncoderValues(self._base(), part.kind, tiles, [length], sizes))[0]

    def _base(self) -> Any:
        """What the family's facts about the encoder read of the base model in transformers."""
        return SimpleNamespace(config=self.config)  # type: ignore[attr-defined]

    def _project(self, features: Tensor) -> Tensor:
        """The projector, without capturing what it is given."""
        captured = self._captured
        projected: Tensor = self.multi_modal_projector(features)  # type: ignore[attr-defined]
        self._captured = captured
        return projected

    def _capture(self, name: str, values: Tensor) -> None:
        self._captured.setdefault(f"encoder_{name}", []).append(values)

    def _capture_features(self, module: Any, args: tuple[Tensor, ...]) -> None:
        if args[0].dim() == 3:
            self._capture("features", args[0])

    def _capture_attention(self, module: Any, args: Any, output: tuple[Tensor, Any]) -> None:
        attention = self._attention[0]
        assert self._spec is not None and self.family.encoder is not None
        has_cls = self.family.encoder.has_cls(self._base())
        heads = attention.num_heads_per_partition
        query, key, _ = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in output[0].chunk(3, -1))
        for name, values in read_attention(self._spec, query, key, has_cls, attention.scale).items():
            self._capture(name, self._over_ranks(values))

    def _over_ranks(self, values: Tensor) -> Tensor:
        """The mean over all heads of what is the mean over this rank's."""
        # Contiguous, since NCCL is handed the bare memory.
        if self._attention[0].num_heads_per_partition == self._attention[0].num_heads:
            return values
        mean: Tensor = tensor_model_parallel_all_reduce(values.contiguous()) / get_tensor_model_parallel_world_size()
        return mean
