"""Pixel-stage pruning in towers of a fixed number of patches: they leave between the embeddings and the first layer."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from ..policies.answers import refuse_features
from ..policies.run import run_policy
from ..policies.stages import Stage
from ..policies.types import VisualTokens
from .call import guarded
from .encoder_call import EncoderCall
from .encoder_stage import EncoderStage


class PatchStage(EncoderStage):
    """Hooks on the embeddings of a CLIP or SigLIP tower, and on the projector.

    Patches are embedded, get their position embeddings, and those of the tokens that stay go through the layers. Every
    picture, or tile of a picture, of a batch keeps the same number.
    """

    stage = Stage.PIXELS
    where = "before"

    def _refuse_what_does_not_fit(self) -> None:
        if not hasattr(self.embeddings, "patch_embedding"):
            raise ValueError(
                f"policy {self.policy.label!r} finds no patch embeddings in {type(self.embeddings).__name__}"
            )
        if hasattr(self.embeddings, "class_embedding") and not self.n_cls:
            raise ValueError(
                f"policy {self.policy.label!r} cannot place the CLS token that this model feeds its language model"
            )

    def attach(self) -> None:
        patches: Any = self.embeddings.patch_embedding
        self._handles += [
            patches.register_forward_hook(self._note_patches),
            self.embeddings.register_forward_hook(self._leave_embeddings),
            self.projector.register_forward_hook(self._leave_projector),
        ]

    def _note_patches(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        call = self._call()
        if call is not None:
            call.memory["pixels"], call.memory["embedded"] = args[0], output

    def _leave_embeddings(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """After the embeddings, (B, CLS + N, D): those of the tokens that stay."""
        call = self._call()
        if call is None:
            return None
        pixels, embedded = call.memory.pop("pixels"), call.memory.pop("embedded")
        call.n = embedded.shape[-2] * embedded.shape[-1]
        call.n_keep = self.budget.count(call.n)
        if call.n_keep >= call.n:
            return None
        started = time.perf_counter()
        kept = self._kept(call, pixels, embedded)
        call.select_ms += (time.perf_counter() - started) * 1e3
        call.kept = kept = kept.to(output.device)
        cls = torch.arange(self.n_cls, device=output.device).expand(len(output), -1)
        index = torch.cat([cls, kept + self.n_cls], 1)
        return output.gather(1, index[..., None].expand(-1, -1, output.shape[2]))

    @torch.no_grad()
    def _kept(self, call: EncoderCall, pixels: Tensor, embedded: Tensor) -> Tensor:
        """(B, K) ascending indices on the host."""
        height, width = embedded.shape[-2:]
        shape: tuple[int, int, int, int] | None = None
        features = embedded.flatten(2).transpose(1, 2)
        if self.policy.pixel_features == "raw":
            side = pixels.shape[-1] // width
            blocks = pixels.unfold(2, side, side).unfold(3, side, side)  # (B, channels, H, W, side, side)
            features = blocks.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
            shape = 1, pixels.shape[1], 1, side**2
        tokens = [
            VisualTokens(each, ((1, height, width),), index=i, pixel_shape=shape) for i, each in enumerate(features)
        ]
        with guarded():
            answers = run_policy(self.policy.chooser, tokens, [call.n_keep] * len(tokens))
        refuse_features(self.policy.label, answers)
        counts = sorted({len(answer.indices) for answer in answers})
        if len(counts) > 1:
            raise ValueError(
                f"policy {self.policy.label!r} left {counts[0]} to {counts[-1]} tokens of the pictures of a batch, and "
                "this vision tower takes the same number of each; use a policy that keeps exact numbers"
            )
        return torch.stack([answer.indices for answer in answers])
