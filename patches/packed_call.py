"""State of the encoder stage in one call of a tower that takes the patches of all inputs as one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..budget import TokenBudget, apportion
from ..device import to_device
from .packed_tower import KeptTokens, whole_raster


@dataclass
class Frame:
    """One picture, or one frame of a video, of which the tower still has tokens.

    Attributes:
        index: among the frames of all inputs of the call.
        entered: tokens of it that entered the tower.
        target: how many of them are left after the last border.
        count: how many are left now.
        memory: the policy's own notes.
    """

    index: int
    entered: int
    target: int
    count: int
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass
class FramesCall:
    """One call of a tower that takes all inputs as one sequence, as it stands at the layer that is running.

    Attributes:
        stage: whose call it is.
        frames: of which the tower has tokens, in its order.
        heads: of each frame, query, key and value of the layer below, (1, H, count * group, d), token by token.
        scaling: of its scores.
        select_ms: time spent on choosing, milliseconds.
    """

    stage: object
    frames: list[Frame] = field(default_factory=list)
    heads: list[tuple[Tensor, ...]] = field(default_factory=list)
    scaling: float | None = None
    select_ms: float = 0.0

    @property
    def now_count(self) -> int:
        """How many tokens are left."""
        return sum(frame.count for frame in self.frames)


@dataclass
class PackedCall(FramesCall):
    """One call of a Qwen-like tower.

    Attributes:
        first: the tokens that entered the tower; None before it.
        kept: the tokens that are left; None before the tower.
        places: after each cut, (K,) indices of the tokens that are left among those that entered, both in the order
            of the tower.
        positions: rotary embeddings of the patches that are left; None until a layer needs them.
        borders: on the host, those of frames (True) and of windows (False), as soon as a layer needs them.
    """

    first: KeptTokens | None = None
    kept: KeptTokens | None = None
    places: list[Tensor] = field(default_factory=list)
    positions: tuple[Tensor, ...] | None = None
    borders: dict[bool, Tensor] = field(default_factory=dict)

    @property
    def now(self) -> KeptTokens:
        """The tokens that are left."""
        assert self.kept is not None
        return self.kept

    @property
    def has_lost(self) -> bool:
        """Whether tokens have left inside the tower."""
        return bool(self.places)

    def begin(self, entered: KeptTokens, budget: TokenBudget) -> None:
        """The tower is entered with these tokens. An input's budget is split over its frames by what is left of them.

        Args:
            entered: which tokens of which inputs.
            budget: counts the tokens of a whole input.
        """
        self.first = self.kept = entered
        self.frames, self.positions = [], None
        self.places.clear()
        self.heads.clear()
        self.borders.clear()
        counts, index = entered.frame_counts().tolist(), 0
        for t, h, w in entered.grids.tolist():
            here = counts[index : index + t]
            n = t * h * w // entered.tower.spatial_merge_size**2
            n_keep = budget.count(n)
            shares = apportion(min(sum(here) if n_keep is None else n_keep, sum(here)), here)
            each = zip(range(index, index + t), here, shares, strict=True)
            self.frames += [Frame(i, count, share, count) for i, count, share in each if count]
            index += t

    def leave(self, left: Tensor) -> Tensor:
        """All but `left`, (K,) indices among the tokens as the tower has them, leave.

        Returns:
            (K * group,) indices, among the patches as the tower has them, of those that stay.
        """
        ids = self.now.ids_in_order_of_tower()[left]
        self.kept = replace(self.now, keep=torch.zeros_like(self.now.keep).index_fill_(0, ids, True))
        self.places.append(self.places[-1][left] if self.places else left)
        counts = self.kept.frame_counts().tolist()
        for frame in self.frames:
            frame.count = counts[frame.index]
        self.frames = [frame for frame in self.frames if frame.count]
        self.positions = None
        self.borders.clear()
        return self._patches(left)

    def geometry(self, arguments: Mapping[str, Any], is_full: bool) -> dict[str, Any]:
        """Arguments of a layer that fit the tokens that are left.

        Args:
            arguments: of the layer, for all patches that entered the tower.
            is_full: whether it attends to whole frames, not to windows.
        """
        positions = arguments["position_embeddings"]
        if self.positions is None:
            rows = to_device(self._patches(self.places[-1]), positions[0].device)
            self.positions = tuple(each.index_select(0, rows) for each in positions)
        if is_full not in self.borders:
            self.borders[is_full] = self.now.borders_of_frames() if is_full else self.now.borders_of_windows()
        borders = self.borders[is_full]
        found: dict[str, Any] = {
            "position_embeddings": self.positions,
            "cu_seqlens": to_device(borders, arguments["cu_seqlens"].device),
        }
        if arguments.get("max_seqlen") is not None:
            found["max_seqlen"] = int(borders.diff().max())
        return found

    def whole_tower(self, values: Tensor) -> Tensor:
        """Rows of the tokens that are left, (K, ...), among those that entered the tower, with zeros elsewhere."""
        assert self.first is not None
        return whole_raster(values, self.places[-1], int(self.first.keep.sum())) if self.places else values

    def whole_raster(self, values: Tensor) -> Tensor:
        """(1, M, C) values of patches, at whatever layer they were read, among those that entered, zeros elsewhere."""
        assert self.first is not None
        entered, group = int(self.first.keep.sum()), self._group
        places = next((each for each in self.places if len(each) * group == values.shape[1]), None)
        if places is None:
            return values
        return whole_raster(values[0].unflatten(0, (-1, group)), places, entered).flatten(0, 1)[None]

    @property
    def _group(self) -> int:
        merge: int = self.now.tower.spatial_merge_size
        return merge**2

    def _patches(self, tokens: Tensor) -> Tensor:
        """(K * group,) indices of the patches of tokens, (K,)."""
        return (tokens[:, None] * self._group + torch.arange(self._group)).flatten()
