"""What a policy gets of a visual input, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..ops import topk_select
from .tower_view import Restoration as Restoration
from .tower_view import TowerCut as TowerCut
from .tower_view import TowerView as TowerView

#: (T, H, W): frames, rows and columns of a raster of visual tokens, stored frame by frame and row by row.
Grid = tuple[int, int, int]
#: Rows and columns of a raster at which another tile of the vision encoder begins, without the first; ascending.
TileBorders = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class EncoderSpec:
    """What a policy reads of the vision encoder. It arrives in `VisualTokens`, one value for each visual token.

    Attributes:
        layer: the encoder layer whose attention and keys are read: `"feature"` is the one whose output becomes the
            features, `"last"` the last one.
        rows: which attention: `"cls"` is what the CLS token pays to each token, `"received"` is the mean over what
            all tokens pay to it; None: no attention.
        cls_query: with `"received"`, whether the CLS token is one of the tokens that pay.
        joined_heads: one softmax over queries and keys of full width, in place of the mean over heads.
        without_cls: what replaces `"cls"` on encoders without a CLS token; None: no attention.
        keys: the layer's keys, with heads `"joined"` or as their `"mean"`; None: no keys.
        features: whether tokens before the projector are read.
        patches: whether patches are read as they are before a merger that makes one token of several.
        padding: whether patches that pad a picture to a square are looked for.
        entropy: whether the grey levels of each token's pixels are looked at.
    """

    layer: Literal["feature", "last"] = "feature"
    rows: Literal["cls", "received"] | None = "received"
    cls_query: bool = True
    joined_heads: bool = False
    without_cls: Literal["received"] | None = "received"
    keys: Literal["joined", "mean"] | None = None
    features: bool = False
    patches: bool = False
    padding: bool = False
    entropy: bool = False


@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of one image, one video or one video frame.

    Attributes:
        features: (N, D) tokens after the projector, in the model's dtype and in the order in which the language
            model reads them. It may be a view of the model's tensor and must not be changed in place. Separators
            (newline tokens of LLaVA-NeXT and LLaVA-OneVision) are not included: no policy chooses them, and
            they leave before all others.
        grids: rasters that make up the input, in order; the products of their sizes sum to N. One for a plain image,
            several for an image that was cut into a thumbnail and crops. None if unknown.
        kind: `"image"` or `"video"`.
        index: number of this input among the visual inputs of its row, from 0. Frames of a video count one by one if
            they are selected from one by one.
        text: (L, D) input embeddings of the row's text, for policies with `"text"` in `needs`.
        question: (Q, D) input embeddings of the text after the row's last visual token; all text if none follows it.
        question_ids: (Q,) int64, the token ids of `question`; None if the model was fed embeddings.
        encoder_features: (N, D_v) tokens before the projector, if `encoder_spec` asks for them and they match the
            projected ones one-to-one.
        encoder_attention: (N,) float32 attention in the vision encoder as `encoder_spec` asks for it. None if it asks
            for attention of the CLS token alone and there is none.
        encoder_keys: keys of that layer, if asked for: (N, H * d), or (N, d) for their mean over heads.
        project: the projector, (K, D_v) -> (K, D), if `encoder_features` are given.
        encoder_patches: (N, D_v), for each token the mean of the patches that the encoder's merger made it of, as they
            were before it, if `encoder_spec` asks for them and there is a merger.
        tile_borders: for each grid, the rows and columns at which another tile begins that the vision encoder saw by
            itself. None if the input is one tile, or if it is not known.
        is_padding: (N,) bool, on the host, True for tokens of patches that pad the picture to a square, if
            `encoder_spec` asks for them; None if there are none, or if it is not known.
        pixel_shape: at the stage `"pixels"` with raw pixels, how `features` are laid out: patches of a token, channels,
            frames, pixels of a patch, whose product is D; None otherwise.
        patch_entropy: (N,) float32 in [0, 1], entropy of the grey levels of each token's pixels, over the largest
            possible one, if `encoder_spec` asks for it; None where it is not known which pixels are whose.
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
    encoder_patches: Tensor | None = None
    tile_borders: tuple[TileBorders, ...] | None = None
    question_ids: Tensor | None = None
    is_padding: Tensor | None = None
    pixel_shape: tuple[int, int, int, int] | None = None
    patch_entropy: Tensor | None = None

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def grid(self) -> Grid | None:
        """(T, H, W) where the input is a single raster, else None."""
        return self.grids[0] if self.grids is not None and len(self.grids) == 1 else None

    def frames(self) -> list[VisualTokens]:
        """The frames of a video, each as a visual input; an image is its only frame."""
        if self.grid is None or self.grid[0] == 1:
            return [self]
        t, h, w = self.grid
        return [
            self.part(lambda x, i=i: x[i * h * w : (i + 1) * h * w], (1, h, w), self.index * t + i)  # type: ignore[misc]
            for i in range(t)
        ]

    def part(self, take: Callable[[Tensor], Tensor], grid: Grid, index: int) -> VisualTokens:
        """Some of the tokens as an input of one raster; `take` gives their rows of a (N, ...) tensor."""

        def taken(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else take(tensor)

        return replace(
            self,
            features=take(self.features),
            grids=(grid,),
            index=index,
            encoder_features=taken(self.encoder_features),
            encoder_attention=taken(self.encoder_attention),
            encoder_keys=taken(self.encoder_keys),
            encoder_patches=taken(self.encoder_patches),
            tile_borders=None,
            is_padding=taken(self.is_padding),
            patch_entropy=taken(self.patch_entropy),
        )


@dataclass(frozen=True)
class DecoderView:
    """One row of a batch, between two decoder layers during prefill.

    M is the length of the sequence that the layer is about to get. A column is an index in `range(M)`.

    Attributes:
        visual: for each visual input, the columns of its remaining tokens, (N,) int64.
        n_keep: for each visual input, how many tokens its budget leaves after the last cut.
        text: (T,) int64, columns of the text after the row's first visual token. If part of an answer is fed with the
            prompt, only the prompt's.
        last: column of the prompt's last token.
        received: `received(rows)`, attention in the layer below that each column receives from the queries at `rows`,
            (R,) int64 columns: softmax, averaged over heads and over the queries, (M,) float32.
        keys: (M, H_kv * d), keys of the layer below as its attention function got them.
        hidden: `hidden()`, (M, D): the hidden states that this layer gets, after the model's final norm.
        embeds: `embeds()`, (M, D): the input embeddings of the text model.
        layer: index of this layer. Tokens that are dropped here are missing from it on.
        n_layers: number of decoder layers.
        lowest: lowest layer before which this model lets tokens be dropped.
        entered: for each visual input, how many of its tokens entered the decoder.
        counts: for each visual input, how many of its remaining tokens the budget leaves at this layer; None: unknown.
        memory: a dictionary for the policy's own use, kept for the row from cut to cut of one prefill; None in a view
            that is not of a model's call.
        received_by_head: `received_by_head(rows)`: as `received`, of each query head by itself, (H, M) float32; None in
            a view that is not of a model's call.
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
    counts: list[int] | None = None
    memory: dict[str, Any] | None = None
    received_by_head: Callable[[Tensor], Tensor] | None = None

    def at(self, i: int, values: Tensor) -> Tensor:
        """(N, ...) rows of (M, ...) `values` at the columns of the visual input `i`.

        They are a view of `values` where no column of the model's call is missing between them, else a copy.
        """
        return values[self.visual[i].to(values.device)]

    def best(self, scores: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """The best-scored tokens of each visual input, as an answer of `Policy.decoder_select`.

        Args:
            scores: (M,), by column.
            counts: for each visual input, how many tokens stay.

        Returns:
            for each visual input, a (N,) bool mask.
        """
        masks = []
        for columns, k in zip(self.visual, counts, strict=True):
            mask = torch.zeros(len(columns), dtype=torch.bool, device=scores.device)
            if k:
                mask[topk_select(scores[columns.to(scores.device)], k)] = True
            masks.append(mask)
        return masks


@dataclass(frozen=True)
class Selection:
    """A policy's answer for one visual input.

    Attributes:
        indices: (K,) int64, the tokens that stay, ascending and distinct; on the tokens' device or on the host.
        features: (K, D) features that replace those of the kept tokens (merging, pooling); None: unchanged.
    """

    indices: Tensor
    features: Tensor | None = None

    def check_form(self, tokens: VisualTokens, policy: str) -> None:
        """Raise `ValueError` unless types, dtypes and shapes are right. Values are not looked at."""
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
