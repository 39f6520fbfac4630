"""Encoder-stage pruning in towers that take the patches of all inputs as one sequence.

Patches leave between layers, all of a token together. Layers above get what is left, with its rotary positions and
with borders of frames and windows that fit. Behind each merger the raster is whole again, with zeros where tokens have
left.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import TokenBudget
from ..device import to_device, to_host
from ..policies.answers import orderly
from ..policies.base import Policy
from ..policies.stages import Stage
from ..policies.types import TowerView
from ..stopwatch import Stopwatch
from .attention_tap import AttentionTap
from .encoder_activations import EncoderActivations
from .families.base import Family, Kind
from .modules import arguments_by_name
from .packed_call import Frame, FramesCall, PackedCall
from .packed_tower import full_attention, no_packed_geometry
from .pixel_stage import entering
from .tower_hooks import InsideTower, not_inside, scaling_of, with_number

logger = logging.getLogger(__name__)


class PackedStage(InsideTower[PackedCall]):
    """Hooks on the tower, its layers and its mergers.

    Tokens leave at the borders above layers that attend to the whole picture: in a tower with windows these are the
    few with full attention. The last layer has no border above it.

    Args:
        base: the base model.
        family: its facts; they name the tower.
        policy: acts at the encoder stage.
        budget: of it. It counts tokens of the language model, and frames of a video share it.

    Raises:
        ValueError: where the policy, the tower or this version of transformers does not allow it.
    """

    def __init__(self, base: nn.Module, family: Family, policy: Policy, budget: TokenBudget):
        self.policy = policy
        assert family.encoder is not None and family.encoder.packed_tower is not None
        self.tower: Any = family.encoder.packed_tower(base)
        self.group: int = self.tower.spatial_merge_size**2  # type: ignore[assignment, operator]
        reason = no_packed_geometry() or self._reason_against_policy()
        if reason is not None:
            raise not_inside(policy, base, reason)
        self.budget = with_number(policy, budget)
        self.blocks: list[Any] = list(self.tower.get_submodule("blocks").children())
        self.is_full = full_attention(self.tower, len(self.blocks))
        #: Indices of the layers in front of which tokens may leave.
        self.borders = [i for i in range(1, len(self.blocks)) if self.is_full[i - 1]]
        if not self.borders:
            raise ValueError(
                f"policy {policy!r} needs a vision tower with a layer of full attention below the last, and this one "
                f"has {len(self.blocks)} layers, of which {sum(self.is_full)} have it"
            )
        self._taps = [AttentionTap(self.blocks[i - 1].attn, self._read) for i in self.borders]
        self._handles: list[Any] = []

    def _reason_against_policy(self) -> str | None:
        if self.policy.chooses_groups:
            return None
        return (
            f"its merger makes one token of {self.group} neighbouring patches, which have to leave or stay together, "
            "and the policy merges or resizes patches one by one"
        )

    def attach(self) -> None:
        for tap in self._taps:
            tap.attach()
        self._handles.append(self.tower.register_forward_pre_hook(self._enter_tower, with_kwargs=True))
        for i, block in enumerate(self.blocks[1:], 1):
            enter = functools.partial(self._enter_block, i)
            self._handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        for merger in (self.tower.merger, *getattr(self.tower, "deepstack_merger_list", ())):
            self._handles.append(merger.register_forward_hook(self._leave_merger))

    def cutting(self) -> AbstractContextManager[PackedCall]:
        """Let tokens leave in the encoder's calls of a block, in this thread alone."""
        return self._during(PackedCall(self))

    @staticmethod
    def mark_kept(
        call: PackedCall,
        activations: EncoderActivations,
        kind: Kind,
        lengths: list[int],
        arguments: Mapping[str, Any],
    ) -> EncoderActivations:
        """Note by visual input, of these numbers of tokens, which are left after a call of the feature function."""
        if call.select_ms:
            activations.select_ms[str(Stage.ENCODER)] = [call.select_ms * n / sum(lengths) for n in lengths]
        if call.has_lost:
            activations.kept[str(Stage.ENCODER)] = list(call.now.keep.split(lengths))
        return activations

    def _read(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> None:
        call = self._call()
        if call is None:
            return
        borders = kwargs.get("cu_seq_lens_q")  # FlashAttention takes all frames at once
        lengths = [query.shape[2]] if borders is None else borders.diff().tolist()
        call.heads += zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
        call.scaling = kwargs.get("scaling")

    def _enter_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the tower, with the patches that the pixels stage has left."""
        call = self._call()
        if call is None:
            return
        call.begin(entering(self.tower, args, kwargs), self.budget)

    def _enter_block(
        self, i: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before layer `i`: let tokens leave, and give it borders and positions of those that are left."""
        call = self._call()
        if call is None:
            return None
        args, arguments = arguments_by_name(module, args, kwargs)
        if i in self.borders:
            arguments = {**arguments, "hidden_states": self._cut(call, self.borders.index(i), arguments)}
        if not call.has_lost:
            return None
        return args, {**arguments, **call.geometry(arguments, self.is_full[i])}

    def _cut(self, call: PackedCall, cut: int, arguments: Mapping[str, Any]) -> Tensor:
        """The hidden states of the tokens that are left, (K * group, D)."""
        hidden: Tensor = arguments["hidden_states"]
        watch = Stopwatch(hidden.device)
        kept = self._choose(call, cut, hidden)
        call.select_ms += watch.ms()
        call.heads.clear()
        if len(kept) == call.now_count:
            return hidden
        logger.debug("encoder cut %d: %d of %d tokens are left", cut, len(kept), call.now_count)
        rows = call.leave(kept)
        return hidden.index_select(0, to_device(rows, hidden.device))

    @torch.no_grad()
    def _choose(self, call: FramesCall, cut: int, hidden: Tensor) -> Tensor:
        """(K,) ascending indices, on the host, among the tokens as the tower has them now, of those that stay."""
        group, starts = self.group, 0
        kept: list[Tensor] = []
        asked: list[tuple[int, TowerView]] = []
        for heads, frame in zip(call.heads, call.frames, strict=True):
            stop = starts + frame.count
            if frame.target >= frame.count:
                kept.append(torch.arange(starts, stop))
            elif frame.target:
                view = self._view(call, cut, hidden[starts * group : stop * group], heads, frame)
                asked.append((starts, view))
            starts = stop
        answers = [self._answer(view) for _, view in asked]
        on_host = to_host([part for pair in answers if pair is not None for part in pair])
        for (start, view), answer in zip(asked, answers, strict=True):
            n = view.hidden.shape[1] // group
            chosen = torch.arange(n) if answer is None else on_host.pop(0)
            if answer is not None and not bool(on_host.pop(0)):
                raise ValueError(
                    f"policy {self.policy.label!r} must return ascending, distinct indices in [0, {n}) inside the "
                    f"vision tower, got {chosen.tolist()}"
                )
            is_last, missing = cut == len(self.borders) - 1, view.n_keep - len(chosen)
            if self.policy.exact and (missing > 0 or (is_last and missing)):
                raise ValueError(
                    f"policy {self.policy!r} left {len(chosen)} tokens in the vision tower, asked for {view.n_keep}"
                )
            kept.append(chosen + start)
        return torch.cat(kept).sort().values if kept else torch.empty(0, dtype=torch.int64)

    def _view(self, call: FramesCall, cut: int, hidden: Tensor, heads: tuple[Tensor, ...], frame: Frame) -> TowerView:
        query, key, value = heads
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        return TowerView(
            hidden=hidden[None],
            query=query,
            key=key,
            value=value,
            scaling=scaling_of(query, call.scaling),
            cls=False,
            sizes=hidden.new_ones(1, len(hidden), dtype=dtype),
            cut=cut,
            n_cuts=len(self.borders),
            n_before=frame.entered,
            n_keep=frame.target,
            memory=frame.memory,
            group=self.group,
        )

    def _answer(self, view: TowerView) -> tuple[Tensor, Tensor] | None:
        """(K,) indices that stay, and (1,) int64, whether they are as they should be; None: all stay."""
        answer = self._select(view)
        return None if answer is None else (answer.keep[0], orderly(view, answer).long()[None])

    def _leave_merger(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """After a merger, also one of deepstack planes: the tower goes on with all tokens that entered it."""
        call = self._call()
        return call.whole_tower(output) if call is not None and call.has_lost else None
