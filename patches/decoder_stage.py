"""Decoder-stage pruning: visual tokens leave at a layer during prefill; the layers above hold less."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..device import to_device, to_host
from ..ops import attention_received
from ..policies.answers import checked_masks
from ..policies.base import Policy
from ..policies.types import DecoderView
from .attention_tap import AttentionTap
from .cache import Held, cache_among
from .call import guarded
from .layer_masks import layer_mask
from .packing import Packing
from .report import Cut

if TYPE_CHECKING:
    from .pruner import Pruner


@dataclass(frozen=True)
class DeepInput:
    """A visual input's surviving tokens, where the decoder has them."""

    record: int  # in the report
    places: Tensor  # (N,) in this call's sequence, on the host
    indices: list[int]  # of those tokens, within the input
    n_keep: int
    entered: int  # how many there were when the text model began


@dataclass
class Deep:
    """The upper layers' side of one forward call, as it stands at the layer that is running.

    A stage is a stretch of layers that begins where tokens may leave.

    Attributes:
        past: per stage, what its layers held before this call.
        columns: (B, M) int64, logical columns of this call's sequence as it stands.
        valid: (B, M) bool, its padding.
        real: the same on the host, where something may be cut.
        asked: (B, M) bool on the host, False at padding and at an answer so far.
        below: (B, P + M) padding mask of the layers under the first stage.
        below_columns: (B, P + M) int64, the logical columns that they hold.
        seen: logical columns after this call.
        differs: whether upper layers hold other columns than the lower ones already.
        visual: per row, the visual inputs that may be cut; None when nothing may.
        records: the report of this call.
        held: per stage, what its layers hold after this call.
        packing: what has left in this call, all in all.
        embeds: (B, M', D), what the text model was fed; None when nothing may be cut.
    """

    past: list[Held]
    columns: Tensor
    valid: Tensor
    below: Tensor
    below_columns: Tensor
    seen: int
    differs: bool
    real: Tensor | None = None
    asked: Tensor | None = None
    visual: list[list[DeepInput]] | None = None
    records: list[Any] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    packing: Packing | None = None
    embeds: Tensor | None = None
    tapped: tuple[Tensor, Tensor, float | None] | None = None
    masks: dict[Any, Any] = field(default_factory=dict)
    embeddings: dict[int, Any] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        return self.packing is not None or self.differs


class DeepStage:
    """Hooks on the layers from the first of `layers` on, and a tap on the attention below each of them."""

    def __init__(self, pruner: Pruner, policy: Policy, layers: list[int], lowest: int):
        self.pruner, self.policy, self.layers, self.lowest = pruner, policy, layers, lowest
        self._taps = [AttentionTap(pruner.text.layers[i - 1].self_attn, self._read) for i in layers]
        self._handles: list[Any] = []

    def attach(self) -> None:
        for tap in self._taps:
            tap.attach()
        for i, layer in enumerate(self.pruner.text.layers):
            if i >= self.layers[0]:
                enter = functools.partial(self._enter, i)
                self._handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))

    def detach(self) -> None:
        for tap in self._taps:
            tap.detach()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _read(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> None:
        state = self.pruner.call()
        if state is not None and state.deep is not None and state.deep.visual is not None:
            state.deep.tapped = (query, key, kwargs.get("scaling"))

    def _enter(self, i: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        state = self.pruner.call()
        deep = None if state is None else state.deep
        if state is None or deep is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        length = hidden.shape[1]
        left = self._begin(deep, i, hidden) if i in self.layers else None
        if left is not None:
            state.outputs_follow(left, length)
        if not deep.changed:
            return None
        state.shrunk = True  # no position ids for FlashAttention
        hidden = hidden if left is None else left.take(hidden)
        new = dict(kwargs)
        if deep.packing is not None:
            new["position_embeddings"] = self._embeddings(deep, deep.packing, kwargs["position_embeddings"])
            new["position_ids"] = None
        config, valid = self.pruner.text.config, deep.held[-1].valid
        kinds = getattr(config, "layer_types", None)
        kind = None if kinds is None else kinds[i]
        if kind not in deep.masks:
            deep.masks[kind] = layer_mask(config, i, hidden, valid, cache_among(kwargs))
        new["attention_mask"] = deep.masks[kind]
        if kwargs.get("cache_position") is not None:
            total = valid.shape[1]
            new["cache_position"] = torch.arange(total - hidden.shape[1], total, device=hidden.device)
        if args:
            return (hidden, *args[1:]), new
        return args, {**new, "hidden_states": hidden}

    @staticmethod
    def _embeddings(deep: Deep, packing: Packing, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Rotary embeddings, (..., B or 1, M, d), of the columns that are left."""
        key = id(embeddings[0])
        if key not in deep.embeddings:
            # last axis first, so that position ids' gather serves
            deep.embeddings[key] = tuple(packing.take_last(part.movedim(-1, 0)).movedim(0, -1) for part in embeddings)
        return deep.embeddings[key]

    def _begin(self, deep: Deep, layer: int, hidden: Tensor) -> Packing | None:
        """A stage begins: decide what leaves, and note what its layers hold."""
        left = None
        if deep.visual is not None:
            left = self._decide(deep, layer, hidden)
        past = deep.past[len(deep.held)]
        columns, valid = torch.cat([past.columns, deep.columns], 1), torch.cat([past.valid, deep.valid], 1)
        deep.held.append(Held(columns, valid, deep.seen))
        deep.masks.clear()
        return left

    def _decide(self, deep: Deep, layer: int, hidden: Tensor) -> Packing | None:
        assert deep.visual is not None and deep.real is not None and deep.asked is not None
        rows = [row for row, inputs in enumerate(deep.visual) if inputs]
        if not rows:
            return None
        views = [self._view(deep, deep.asked[row], layer, hidden, row, deep.visual[row]) for row in rows]
        jobs, masks = [], []
        with guarded():
            answers = self.policy.deep_select_many(views)
        for row, chosen in zip(rows, checked_masks(self.policy.label, views, answers), strict=True):
            for visual, mask in zip(deep.visual[row], chosen or (), strict=chosen is not None):
                jobs.append((row, visual))
                masks.append(mask)
        deep.tapped = None
        stays = torch.ones_like(deep.real)
        kept = to_host(masks)
        for (row, visual), mask in zip(jobs, kept, strict=True):
            stays[row, visual.places] = mask
        if bool(stays.all()):
            return None
        packing = Packing.of(stays, deep.real)
        place = packing.places(stays.shape[1])
        for row in rows:
            deep.visual[row] = [
                rest
                for visual in deep.visual[row]
                if (rest := self._rest(deep, layer, visual, stays[row], place[row])) is not None
            ]
        left = packing.to(deep.valid.device)
        deep.columns, deep.valid, deep.real = left.take(deep.columns), left.valid, packing.valid
        deep.asked = packing.take(deep.asked) & packing.valid
        deep.packing = left.after(deep.packing)
        deep.embeddings.clear()
        return left

    @staticmethod
    def _rest(deep: Deep, layer: int, visual: DeepInput, stays: Tensor, place: Tensor) -> DeepInput | None:
        """What is left of an input, and a note in the report; `stays` and `place` by columns of its row."""
        keep = stays[visual.places]
        indices = [j for j, k in zip(visual.indices, keep.tolist(), strict=True) if k]
        if len(indices) < len(visual.indices):
            record = deep.records[visual.record]
            deep.records[visual.record] = replace(record, cuts=(*record.cuts, Cut(layer, indices)))
        if not indices:
            return None
        places = place[visual.places[keep]]
        return replace(visual, places=places, indices=indices, n_keep=min(visual.n_keep, len(indices)))

    def _view(
        self, deep: Deep, asked: Tensor, layer: int, hidden: Tensor, row: int, inputs: list[DeepInput]
    ) -> DecoderView:
        assert deep.tapped is not None
        query, key, scaling = deep.tapped
        query, key = query[row : row + 1], key[row : row + 1]
        length = deep.valid.shape[1]
        # the padding of the layer that was listened to
        valid = deep.held[-1].valid[row] if deep.held else deep.below[row]
        valid = valid.to(query.device)
        total, past = len(valid), len(valid) - length
        key = key[:, :, :total]  # a static cache holds empty places after them

        def received(rows: Tensor) -> Tensor:
            rows = to_device(rows, query.device)
            order = torch.arange(total, device=query.device)
            seen = valid & (order <= (rows + past)[:, None])
            return attention_received(query[:, :, rows], key, mask=seen[None], scaling=scaling)[0, past:]

        def embeds() -> Tensor:
            assert deep.embeds is not None
            embeds = deep.embeds[row] if deep.packing is None else deep.embeds[row, deep.packing.index[row]]
            return embeds.to(query.device)

        visual = torch.cat([v.places for v in inputs])
        is_text = asked.clone()
        is_text[visual] = False
        is_text[: int(visual.min())] = False
        return DecoderView(
            visual=[to_device(v.places, query.device) for v in inputs],
            n_keep=[v.n_keep for v in inputs],
            text=to_device(is_text.nonzero()[:, 0], query.device),
            last=int(asked.nonzero()[-1]),
            received=received,
            keys=key[0, :, past:].transpose(0, 1).flatten(1),
            hidden=lambda: self.pruner.text.norm(hidden[row]).to(query.device),
            embeds=embeds,
            layer=layer,
            n_layers=len(self.pruner.text.layers),
            lowest=self.lowest,
            entered=[v.entered for v in inputs],
        )
