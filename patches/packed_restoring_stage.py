"""Encoder-stage pruning that restores, in towers that take the patches of all inputs as one sequence."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..budget import TokenBudget
from ..device import to_device
from ..policies.base import Policy
from ..policies.types import TowerView
from ..stopwatch import Stopwatch
from .families.base import Family
from .packed_call import PackedCall
from .packed_tower import full_attention, no_packed_geometry
from .pixel_stage import entering
from .restored_frames import RestoredFrames
from .restoring_stage import RestoringCall, RestoringStage
from .tower_hooks import not_inside, scaling_of

logger = logging.getLogger(__name__)


@dataclass
class PackedRestoringCall(RestoringCall):
    """One call of such a tower, as it stands at the layer that is running.

    Attributes:
        entered: the tokens that entered the tower, and the frames that they are of.
        calls: query, key and value of the layer below the first cut, of each call of its attention.
        positions: rotary embeddings of the patches that stay; None until a layer needs them.
        borders: on the host, those of frames (True) and of windows (False) of the patches that stay, as soon as a layer
            needs them.
    """

    entered: PackedCall | None = None
    calls: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    positions: tuple[Tensor, ...] | None = None
    borders: dict[bool, Tensor] = field(default_factory=dict)


class PackedRestoringStage(RestoringStage):
    """Hooks on the layers and the mergers of a Qwen-like tower.

    Patches leave one by one, since all of a token are back behind the last layer, and before a merger of deepstack
    planes. Borders of frames and windows become those of the patches that stay.

    Args:
        base: the base model.
        family: its facts; they name the tower.
        policy: says with `restoration` in front of which layer patches leave, and chooses them with `encoder_select`.
        budget: of it. It counts tokens of the language model. Frames of a video share it, and each keeps a token or
            more.

    Raises:
        ValueError: where this version of transformers, the tower or the budget does not allow it.
    """

    def __init__(self, base: nn.Module, family: Family, policy: Policy, budget: TokenBudget):
        assert family.encoder is not None and family.encoder.packed_tower is not None
        self.tower: Any = family.encoder.packed_tower(base)
        reason = no_packed_geometry()
        if reason is not None:
            raise not_inside(policy, base, reason)
        self.group, self.n_cls = self.tower.spatial_merge_size**2, 0  # type: ignore[assignment, operator]
        self._set(policy, budget, list(self.tower.get_submodule("blocks").children()))
        self.is_full = full_attention(self.tower, len(self.layers))

    def attach(self) -> None:
        super().attach()
        self._handles.append(self.tower.register_forward_pre_hook(self._enter_tower, with_kwargs=True))
        for merger in getattr(self.tower, "deepstack_merger_list", ()):
            self._handles.append(merger.register_forward_pre_hook(self._enter_merger))

    def cutting(self) -> AbstractContextManager[RestoringCall]:
        """Let patches leave in the encoder's calls of a block, in this thread alone."""
        return self._during(PackedRestoringCall(self))

    def _read(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> None:
        call: Any = self._call()
        if call is not None:
            call.calls.append((query, key, value))
            call.heads = (query, key, value, scaling_of(query, kwargs.get("scaling")))

    def _enter_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the tower, with the patches that the pixels stage has left."""
        call: Any = self._call()
        if call is None:
            return
        call.entered, call.positions = PackedCall(self), None
        call.entered.begin(entering(self.tower, args, kwargs), self.budget)
        call.borders.clear()
        call.calls.clear()

    def _cut(self, call: PackedRestoringCall, hidden: Tensor, mask: Any) -> None:
        watch = Stopwatch(hidden.device)
        assert call.entered is not None
        sizes = [frame.count * self.group for frame in call.entered.frames]
        counts = [max(1, frame.target) * self.group for frame in call.entered.frames]
        if counts != sizes:
            views = self._views(call, hidden, sizes, counts)
            kept = [
                torch.arange(n, device=hidden.device) if n == n_keep else self._choose(call, view)[0]
                for n, n_keep, view in zip(sizes, counts, views, strict=True)
            ]
            call.tokens = RestoredFrames.of(hidden, kept, sizes, self.neighbours)
            logger.debug("encoder: %d of %d patches go through layers from %d on", sum(counts), sum(sizes), self.first)
        call.before = call.heads = None
        call.calls.clear()
        call.select_ms += watch.ms()

    def _views(self, call: PackedRestoringCall, hidden: Tensor, sizes: list[int], counts: list[int]) -> list[TowerView]:
        """What the policy sees of each frame, of (N, D) states of all; it is to keep so many patches of each."""
        assert call.before is not None and call.heads is not None
        dtype, before = torch.promote_types(hidden.dtype, torch.float32), call.before.to(hidden.device)
        query, key, value = (torch.cat(each, 2).split(sizes, 2) for each in zip(*call.calls, strict=True))
        return [
            TowerView(
                hidden=now[None],
                query=query[i],
                key=key[i],
                value=value[i],
                scaling=call.heads[3],
                cls=False,
                sizes=now.new_ones(1, len(now), dtype=dtype),
                cut=0,
                n_cuts=1,
                n_before=len(now),
                n_keep=counts[i],
                memory={},
                before=then[None],
            )
            for i, (now, then) in enumerate(zip(hidden.split(sizes), before.split(sizes), strict=True))
        ]

    def _geometry(self, i: int, call: PackedRestoringCall, arguments: Mapping[str, Any]) -> dict[str, Any]:
        assert call.tokens is not None
        if call.positions is None:
            positions = arguments["position_embeddings"]
            index = to_device(call.tokens.kept, positions[0].device)
            call.positions = tuple(each.index_select(0, index) for each in positions)
        given, is_full = arguments["cu_seqlens"], self.is_full[i]
        if is_full not in call.borders:
            call.borders[is_full] = _borders_of_kept(given.cpu(), call.tokens.kept.cpu())
        borders = call.borders[is_full]
        found: dict[str, Any] = {"position_embeddings": call.positions, "cu_seqlens": to_device(borders, given.device)}
        if arguments.get("max_seqlen") is not None:
            found["max_seqlen"] = int(borders.diff().max())
        return found

    def _enter_merger(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before a merger of deepstack planes: states of all patches."""
        call = self._call()
        if call is None or call.tokens is None or len(args[0]) != len(call.tokens.kept):
            return None
        return (call.tokens.to(args[0].device).whole(args[0]), *args[1:])


def _borders_of_kept(borders: Tensor, kept: Tensor) -> Tensor:
    """Borders of pieces of the sequence, (P + 1,), if (K,) patches of it stay; pieces without any are left out."""
    piece = torch.bucketize(kept, borders[1:].to(kept.dtype), right=True)
    counts = torch.bincount(piece, minlength=len(borders) - 1)
    return F.pad(counts[counts > 0].cumsum(0), (1, 0)).to(borders.dtype)
