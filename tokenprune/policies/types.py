"""What a policy sees of one visual input, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..ops import topk_select

#: (T, H, W) of a raster of visual tokens, T-major, then row by row.
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class EncoderSpec:
    """What a policy wants to know of the vision encoder.

    Attributes:
        layer: whose attention: `"feature"`, the one whose output becomes the features, or `"last"`.
        rows: whose attention: of `"cls"`, or `"received"` from every token.
        cls_query: with `"received"`: whether the CLS token is among the givers.
        joined_heads: one softmax over full-width queries and keys instead of the mean over heads.
        without_cls: what takes the place of `"cls"` on encoders that have none; None: nothing.
        keys: also give the layer's keys, heads `"joined"` or their `"mean"`.
        features: also give the tokens before the projector.
    """

    layer: Literal["feature", "last"] = "feature"
    rows: Literal["cls", "received"] | None = "received"
    cls_query: bool = True
    joined_heads: bool = False
    without_cls: Literal["received"] | None = "received"
    keys: Literal["joined", "mean"] | None = None
    features: bool = False


@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of one image, or of one video (or video frame), as a policy sees them.

    Attributes:
        features: (N, D) tokens after the projector, in the order the language model reads them and
            in the model's dtype; perhaps a view of its own, not to be changed in place. Separators
            (newline tokens of LLaVA-NeXT and LLaVA-OneVision) are not among them: they are no candidates.
        grids: rasters that make up the input, in order, their products summing to N; one for a plain
            image, several for an image cut into a thumbnail and a mosaic of crops. None if unknown.
        kind: `"image"` or `"video"`.
        index: which of its row's visual inputs this is, counting video frames one by one where the
            budget is spread over frames.
        text: (L, D) input embeddings of the row's text, for policies that declare `"text"`.
        question: (Q, D) those of them that follow the row's last visual token; all text, where none does.
        encoder_features: (N, D_v) tokens before the projector, where they exist one-to-one.
        encoder_attention: (N,) float32 saliency from the vision encoder, for policies whose `encoder`
            asks for it. None where it asks for CLS attention alone and there is no CLS.
        encoder_keys: (N, H * d) or, their mean over heads, (N, d) keys of that layer, if asked for.
        project: the projector, (K, D_v) -> (K, D), where `encoder_features` are given.
    """

    features: Tensor
    grids: tuple[Grid, ...] | None = None
    kind: Literal["image", "video"] = "image"
    index: int = 0
    text: Tensor | None = None
    question: Tensor | None = None
    encoder_features: Tensor | None = None
    encoder_attention: Tensor | None = None
    encoder_keys: Tensor | None = None
    project: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def grid(self) -> Grid | None:
        """(T, H, W) where the input is a single raster, else None."""
        return self.grids[0] if self.grids is not None and len(self.grids) == 1 else None

    def frames(self) -> list[VisualTokens]:
        """The frames of a video, each a visual input of its own; an image is its own only frame."""
        if self.grid is None or self.grid[0] == 1:
            return [self]
        t, h, w = self.grid

        def part(tensor: Tensor | None, i: int) -> Tensor | None:
            return None if tensor is None else tensor[i * h * w : (i + 1) * h * w]

        return [
            VisualTokens(
                features=self.features[i * h * w : (i + 1) * h * w],
                grids=((1, h, w),),
                kind=self.kind,
                index=self.index * t + i,
                text=self.text,
                question=self.question,
                encoder_features=part(self.encoder_features, i),
                encoder_attention=part(self.encoder_attention, i),
                encoder_keys=part(self.encoder_keys, i),
                project=self.project,
            )
            for i in range(t)
        ]


@dataclass(frozen=True)
class DecoderView:
    """One row of a batch, at the border of two decoder layers during prefill.

    Attributes:
        visual: per visual input, the places of its surviving tokens in this call's sequence, (N,) int64.
        n_keep: per visual input, how many the budget leaves.
        text: (T,) int64, places of text after the row's first visual token; of the prompt, where an answer so far is
            fed with it.
        last: place of the prompt's last token.
        received: `received(rows)`: attention that each place gets in the layer below from the given
            (R,) places, softmax averaged over heads and over them, (M,) float32.
        keys: (M, H_kv * d), keys of the layer below, as its kernel got them.
        hidden: `hidden()`: (M, D), what this layer would be fed, through the final norm.
        embeds: `embeds()`: (M, D), what the text model was fed.
        layer: whose input this is, of `n_layers`; tokens that leave here are gone from it on.
        lowest: lowest layer before which this model lets tokens leave.
        entered: per visual input, how many of its tokens entered the decoder.
    """

    visual: list[Tensor]
    n_keep: list[int]
    text: Tensor
    last: int
    received: Callable[[Tensor], Tensor]
    keys: Tensor
    hidden: Callable[[], Tensor]
    embeds: Callable[[], Tensor]
    layer: int
    n_layers: int
    lowest: int
    entered: list[int]

    def best(self, scores: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """An answer of `Policy.deep_select`: the best-scored tokens of each visual input.

        Args:
            scores: (M,), by place.
            counts: per visual input, how many stay.
        """
        kept = []
        for places, k in zip(self.visual, counts, strict=True):
            mask = torch.zeros(len(places), dtype=torch.bool, device=scores.device)
            if k:
                mask[topk_select(scores[places.to(scores.device)], k)] = True
            kept.append(mask)
        return kept


@dataclass(frozen=True)
class TowerView:
    """Pictures or tiles of one size, between two layers of a vision tower.

    Attributes:
        hidden: (B, M, D), what the layer above would be fed; CLS is token 0 where there is one.
        query, key, value: (B, H, M, d) of the layer below, as its kernel got them.
        scaling: of its scores.
        cls: whether there is a CLS token, which has to stay.
        sizes: (B, M) float32 or wider, how many patches each token stands for.
        cut: which border this is, from 0, of `n_cuts`.
        n_before: tokens of a picture at the first border, CLS not counted.
        n_keep: how many are to be left behind the last border.
        memory: the policy's own notes, kept from border to border of one call.
    """

    hidden: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    cls: bool
    sizes: Tensor
    cut: int
    n_cuts: int
    n_before: int
    n_keep: int
    memory: dict[str, Any]

    @property
    def surplus(self) -> int:
        """How many tokens have to leave yet."""
        return self.hidden.shape[1] - int(self.cls) - self.n_keep


@dataclass(frozen=True)
class TowerCut:
    """What stays at such a border.

    Attributes:
        keep: (B, M') int64, ascending, CLS included.
        hidden: (B, M', D) in their place, if they have changed.
        sizes: (B, M') float32, how many patches each stands for now, if that has changed.
    """

    keep: Tensor
    hidden: Tensor | None = None
    sizes: Tensor | None = None


@dataclass(frozen=True)
class Selection:
    """A policy's answer for one visual input.

    Attributes:
        indices: (K,) int64, the tokens that stay, ascending and distinct; on their device or on the host.
        features: optional (K, D) that replace the kept tokens (merging, pooling).
    """

    indices: Tensor
    features: Tensor | None = None

    def check_form(self, tokens: VisualTokens, policy: str) -> None:
        """Raise `ValueError` unless the answer has the form it should have, whatever its values."""
        indices, features, width = self.indices, self.features, tokens.features.shape[1]
        if not isinstance(indices, Tensor) or indices.dtype != torch.int64 or indices.ndim != 1 or indices.is_meta:
            raise ValueError(f"policy {policy!r} must return 1-D int64 indices, got {indices!r}")
        if features is None:
            return
        if not isinstance(features, Tensor) or not features.is_floating_point() or features.is_meta:
            what = features.dtype if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"policy {policy!r} must return features as a floating-point tensor with data, got {what}")
        if features.shape != (len(indices), width):
            raise ValueError(
                f"policy {policy!r} must return features of shape {(len(indices), width)}, got {tuple(features.shape)}"
            )

    def check(self, n: int, n_keep: int | None, policy: str) -> None:
        """Raise `ValueError` unless this is a valid choice of `n_keep` (None: any number) out of `n` tokens."""
        indices = self.indices
        if n_keep is None:
            n_keep = max(1, len(indices))
        if len(indices) != n_keep:
            raise ValueError(f"policy {policy!r} kept {len(indices)} of {n} visual tokens, asked for {n_keep}")
        in_range = (indices >= 0) & (indices < n)
        in_range[1:] &= indices[1:] > indices[:-1]
        if not bool(in_range.all()):
            raise ValueError(
                f"policy {policy!r} must return ascending, distinct indices in [0, {n}), got {indices.tolist()}"
            )
