"""Pixel-stage pruning in towers of a fixed number of patches: they leave between the embeddings and the first layer."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..policies.answers import refuse_features
from ..policies.run import run_policy
from ..policies.stages import Stage
from ..policies.types import VisualTokens
from ..stopwatch import Stopwatch
from .call import guarded
from .encoder_call import BEFORE, EncoderCall
from .encoder_stage import EncoderStage
from .restored_tokens import rows


def blocks_of_pixels(pixels: Tensor, side: int, merge: int) -> Tensor:
    """(B, N, merge ** 2 * channels * side ** 2), the pixels of each token, of pictures (B, channels, height, width).

    A token is merge x merge patches of side x side pixels, patch by patch; what is left over at the right and at the
    bottom belongs to none.
    """
    height, width = (size // (side * merge) for size in pixels.shape[-2:])
    whole = pixels[..., : height * merge * side, : width * merge * side]
    split = whole.unflatten(3, (width, merge, side)).unflatten(2, (height, merge, side))
    # (B, channels, H, merge, side, W, merge, side)
    patches: Tensor = split.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(3).flatten(1, 2)
    return patches


class PatchStage(EncoderStage):
    """Hooks on the embeddings of a CLIP or SigLIP tower, and on the projector.

    Patches are embedded, get their position embeddings, and those of the tokens that stay go through the layers. Every
    picture, or tile of a picture, of a batch keeps the same number.
    """

    running: ClassVar[ContextVar[Any]] = BEFORE
    stage = Stage.PIXELS
    where = "before"
    #: Patches along a side that become one token.
    merge = 1

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
        kept = self._choose_patches(call, pixels, embedded)
        if kept is None:
            return None
        return rows(output, self._with_cls(kept))

    def _with_cls(self, kept: Tensor) -> Tensor:
        """(B, CLS + K) indices of tokens of the tower, of (B, K) indices of patches."""
        cls = torch.arange(self.n_cls, device=kept.device).expand(len(kept), -1)
        return torch.cat([cls, kept + self.n_cls], 1)

    def _choose_patches(self, call: EncoderCall, pixels: Tensor, embedded: Tensor) -> Tensor | None:
        """(B, K) ascending indices of the patches that stay; None: all do.

        Args:
            call: gets to know them.
            pixels: (B, channels, ...) of all patches.
            embedded: (B, D, H, W), patches as they are embedded, without positions.
        """
        height, width = (side // self.merge for side in embedded.shape[-2:])
        call.n, unit = embedded.shape[-2] * embedded.shape[-1], self.merge**2
        n_keep = self.budget.count(height * width)
        call.n_keep = n_keep * unit
        if n_keep >= height * width:
            return None
        watch = Stopwatch(embedded.device)
        tokens = self._kept(n_keep, pixels, embedded)
        stays = torch.zeros(len(tokens), height, 1, width, 1, dtype=torch.bool)
        stays.view(len(tokens), -1).scatter_(1, tokens, True)
        patches = stays.expand(-1, -1, self.merge, -1, self.merge).flatten(1).nonzero()[:, 1].view(len(tokens), -1)
        call.select_ms += watch.ms()
        call.kept = patches.to(embedded.device)
        return call.kept

    @torch.no_grad()
    def _kept(self, n_keep: int, pixels: Tensor, embedded: Tensor) -> Tensor:
        """(B, n_keep) ascending indices of tokens, on the host."""
        merge = self.merge
        height, width = (side // merge for side in embedded.shape[-2:])
        shape: tuple[int, int, int, int] | None = None
        features = F.avg_pool2d(embedded, merge).flatten(2).transpose(1, 2)
        if self.policy.pixel_features == "raw":
            side = pixels.shape[-1] // embedded.shape[-1]
            features, shape = blocks_of_pixels(pixels, side, merge), (merge**2, pixels.shape[1], 1, side**2)
        tokens = [
            VisualTokens(each, ((1, height, width),), index=i, pixel_shape=shape) for i, each in enumerate(features)
        ]
        with guarded():
            answers = run_policy(self.policy.chooser, tokens, [n_keep] * len(tokens))
        refuse_features(self.policy.label, answers)
        counts = sorted({len(answer.indices) for answer in answers})
        if len(counts) > 1:
            raise ValueError(
                f"policy {self.policy.label!r} left {counts[0]} to {counts[-1]} tokens of the pictures of a batch, and "
                "this vision tower takes the same number of each; use a policy that keeps exact numbers"
            )
        return torch.stack([answer.indices for answer in answers])
