"""Decoder-stage pruning: visual tokens leave at a layer during prefill; the layers above hold less."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..cache import Held
from ..decoder import layer_mask
from ..ops import attention_received
from ..policies.base import Policy
from ..saliency import AttentionTap
from ..sequence import Packing
from ..visual import DecoderView

if TYPE_CHECKING:
    from .hooks import Pruner


@dataclass(frozen=True)
class DeepInput:
    """A visual input's surviving tokens, where the decoder has them."""

    record: int  # in the report
    places: Tensor  # (N,) in this call's sequence
    indices: list[int]  # of those tokens, within the input
    n_keep: int


@dataclass
class Deep:
    """The upper layers' side of one forward call.

    Attributes:
        held: what the upper layers will hold after this call: columns, padding (B, P + M).
        length: M, columns of this call, before any cut.
        differs: whether upper layers hold other columns than the lower ones already.
        lower_valid: (B, P_lower + M) padding mask of the layers below.
        visual: per row, the visual inputs that may be cut; None when nothing may.
        records: the report of this call.
    """

    held: Held
    length: int
    differs: bool
    lower_valid: Tensor
    visual: list[list[DeepInput]] | None = None
    records: list[Any] = field(default_factory=list)
    packing: Packing | None = None
    tapped: tuple[Tensor, Tensor, float | None] | None = None
    masks: dict[Any, Any] = field(default_factory=dict)
    embeddings: dict[int, Any] = field(default_factory=dict)


class DeepStage:
    """Hooks on the layers from `layer` on, and a tap on the attention below it."""

    def __init__(self, pruner: Pruner, policy: Policy, layer: int):
        self.pruner, self.policy, self.layer = pruner, policy, layer
        below: Any = pruner.text.layers[layer - 1]
        self._tap = AttentionTap(below.self_attn, self._read)
        self._handles: list[Any] = []

    def attach(self) -> None:
        self._tap.attach()
        for i, layer in enumerate(self.pruner.text.layers):
            if i >= self.layer:
                enter = functools.partial(self._enter, i)
                self._handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))

    def detach(self) -> None:
        self._tap.detach()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _read(self, module: nn.Module, query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> None:
        state = self.pruner.call()
        if state is not None and state.deep is not None and state.deep.visual is not None:
            state.deep.tapped = (query, key, kwargs.get("scaling"))

    def _enter(self, i: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        state = self.pruner.call()
        deep = None if state is None else state.deep
        if state is None or deep is None:
            return None
        if i == self.layer and deep.visual is not None:
            self._decide(deep)
            if deep.packing is not None:
                state.labels_follow(deep.packing)
        if deep.packing is None and not deep.differs:
            return None
        state.shrunk = True  # no position ids for FlashAttention
        hidden = args[0] if args else kwargs["hidden_states"]
        new = dict(kwargs)
        if deep.packing is not None:
            if i == self.layer:
                hidden = deep.packing.take(hidden)
            new["position_embeddings"] = self._embeddings(deep, kwargs["position_embeddings"])
            new["position_ids"] = None
        cache = kwargs.get("past_key_values")
        kind = getattr(self.pruner.text.config, "layer_types", [None] * (i + 1))
        kind = kind[i] if kind is not None else None
        if kind not in deep.masks:
            deep.masks[kind] = layer_mask(self.pruner.text.config, i, hidden, deep.held.valid, cache)
        new["attention_mask"] = deep.masks[kind]
        if kwargs.get("cache_position") is not None:
            total = deep.held.valid.shape[1]
            new["cache_position"] = torch.arange(total - hidden.shape[1], total, device=hidden.device)
        if args:
            return (hidden, *args[1:]), new
        return args, {**new, "hidden_states": hidden}

    @staticmethod
    def _embeddings(deep: Deep, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Rotary embeddings, (..., B or 1, M, d), of the columns that are left."""
        assert deep.packing is not None
        key = id(embeddings[0])
        if key not in deep.embeddings:
            # last axis first, so that position ids' gather serves
            deep.embeddings[key] = tuple(
                deep.packing.take_last(part.movedim(-1, 0)).movedim(0, -1) for part in embeddings
            )
        return deep.embeddings[key]

    def _decide(self, deep: Deep) -> None:
        assert deep.visual is not None
        batch = len(deep.visual)
        device = deep.held.valid.device
        stays = torch.ones(batch, deep.length, dtype=torch.bool, device=device)
        for row, inputs in enumerate(deep.visual):
            if not inputs:
                continue
            kept = self.policy.deep_select(self._view(deep, row, inputs))
            if kept is None:
                continue
            for visual, keep in zip(inputs, kept, strict=True):
                stays[row, visual.places] = keep.to(device)
                indices = [j for j, k in zip(visual.indices, keep.tolist(), strict=True) if k]
                record = deep.records[visual.record]
                deep.records[visual.record] = replace(record, deep_layer=self.layer, deep_indices=indices)
        deep.tapped = None
        if bool(stays.all()):
            return
        now = deep.held.valid[:, -deep.length :]
        deep.packing = packing = Packing.of(stays & now)
        before = slice(None, -deep.length)
        deep.held = Held(
            torch.cat([deep.held.columns[:, before], packing.take(deep.held.columns[:, -deep.length :])], 1),
            torch.cat([deep.held.valid[:, before], packing.valid], 1),
            deep.held.seen,
        )

    def _view(self, deep: Deep, row: int, inputs: list[DeepInput]) -> DecoderView:
        assert deep.tapped is not None
        query, key, scaling = deep.tapped
        query, key = query[row : row + 1], key[row : row + 1]
        valid = deep.lower_valid[row].to(query.device)
        total, past = len(valid), len(valid) - deep.length
        key = key[:, :, :total]  # a static cache holds empty places after them

        def received(rows: Tensor) -> Tensor:
            rows = rows.to(query.device)
            order = torch.arange(total, device=query.device)
            seen = valid & (order <= (rows + past)[:, None])
            return attention_received(query[:, :, rows], key, mask=seen[None], scaling=scaling)[0, past:]

        visual = torch.cat([v.places for v in inputs])
        is_text = valid[past:].clone()
        is_text[visual] = False
        is_text[: int(visual.min())] = False
        return DecoderView(
            visual=[v.places for v in inputs],
            n_keep=[v.n_keep for v in inputs],
            text=is_text.nonzero()[:, 0],
            last=deep.length - 1,
            received=received,
        )
