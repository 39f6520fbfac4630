"""The stock model with columns hidden from some of its layers, other features in others, and positions closed up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenprune.patches.cache import cache_among

from ..families import text_of


@dataclass
class Seen:
    """What is left of a conversation's T columns.

    Attributes:
        layers: (layers, B, T) bool, False at what a layer has lost.
        moved: (B, T), how far the position of each column has moved left.
        shift: (B,), how far those to come will.
    """

    layers: Tensor
    moved: Tensor
    shift: Tensor

    @classmethod
    def nothing(cls, layers: int, rows: int) -> Seen:
        none = torch.zeros(rows, 0)
        return cls(torch.ones(layers, rows, 0).bool(), none.long(), torch.zeros(rows).long())

    def longer(self, length: int) -> Seen:
        """With columns of which nothing is lost."""
        more = length - self.moved.shape[1]
        moved = torch.cat([self.moved, self.shift[:, None].expand(-1, more)], 1)
        return Seen(pad(self.layers, (0, more), value=True), moved, self.shift)

    def until(self, length: int, visible: Tensor) -> Seen:
        """After a crop."""
        moved = self.moved[:, :length]
        return Seen(self.layers[..., :length], moved, at_the_end(moved, visible))


def at_the_end(values: Tensor, visible: Tensor) -> Tensor:
    """(B,) of (B, T), at each row's last visible column; 0 without one."""
    places = torch.arange(1, visible.shape[1] + 1) * visible
    return pad(values, (1, 0)).gather(1, pad(places, (1, 0)).max(1, keepdim=True).values)[:, 0]


@contextlib.contextmanager
def listening(model: Any, fed: list) -> Iterator[None]:
    """Note what the text model is fed, call by call. Pruning was applied before."""
    note = lambda module, args, kwargs: fed.append(kwargs["inputs_embeds"])
    handle = text_of(model).register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def held(keep: Tensor, visible: Tensor) -> list[Tensor]:
    """Per row, the columns that a packed sequence holds at its right end: what stays, and trailing padding."""
    trailing = visible.flip(1).cumsum(1).flip(1) == 0
    return [row.nonzero()[:, 0] for row in (keep & visible) | trailing]


@dataclass
class Hiding:
    """Context manager: the calls of one turn by the stock model are given what the pruned one has.

    Args:
        model: the stock model.
        seen: what is left of the columns up to the end of this turn's prompt.
        lost: (B, T) bool, what this turn drops before the decoder.
        visible: (B, T) bool, the caller's mask.
        compact: whether positions are closed up in this turn.
        fed: per call of the text model, what the pruned one was fed.
        changed: whether features may differ.
    """

    model: Any
    seen: Seen
    lost: Tensor
    visible: Tensor
    compact: bool
    fed: list[Tensor]
    changed: bool
    _handles: list = field(default_factory=list)
    _calls: int = 0
    _past: int = 0
    shift: Tensor = field(init=False)

    def __enter__(self) -> Hiding:
        self.shift = self.seen.shift
        text = text_of(self.model)
        self._handles.append(text.register_forward_pre_hook(self._text, with_kwargs=True))
        for i, layer in enumerate(text.layers):
            hook = lambda m, args, kwargs, i=i: self._layer(i, args, kwargs)
            self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _text(self, module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        cache, new = cache_among(kwargs), dict(kwargs)
        tokens = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        batch, length = tokens.shape[:2]
        self._past = 0 if cache is None else int(cache.get_seq_length())
        copies, total = batch // len(self.visible), self._past + length
        lost, visible = (
            pad(part, (0, max(0, total - part.shape[1])), value=value)[:, self._past : total].repeat_interleave(
                copies, 0
            )
            for part, value in ((self.lost, False), (self.visible, True))
        )
        if lost.any():
            new["inputs_embeds"] = self._with_features(kwargs["inputs_embeds"], held(~lost, visible))
        self._calls += 1
        shift = self.shift.repeat_interleave(copies)
        if shift.any() or (self.compact and lost.any()):
            positions = kwargs.get("position_ids")
            if positions is None:
                positions = torch.arange(self._past, total)[None]
            closed = self._closed(positions, lost, visible, shift)
            if self._past < self.visible.shape[1]:
                now = (positions - closed)[..., -1, :, :] if positions.ndim == 3 else positions - closed
                self._moved(now[::copies], visible[::copies])
            new["position_ids"] = closed.clamp(min=0)
            if kwargs.get("attention_mask") is None:  # or positions that repeat are read as packed sequences
                new["attention_mask"] = torch.ones(batch, total, dtype=torch.bool)
        return args, new

    def _closed(self, positions: Tensor, lost: Tensor, visible: Tensor, shift: Tensor) -> Tensor:
        """Positions (..., B, L) as the pruned model has them."""
        before = self.seen.shift.repeat_interleave(len(lost) // len(self.visible))
        prompt = self._past < self.visible.shape[1]
        if not prompt or not self.compact or not lost.any():
            return positions - (before if prompt else shift)[:, None]
        if positions.ndim == 2:
            return positions - before[:, None] - lost.cumsum(1)
        # Coordinates: what is left of a row that loses something is counted on from its first column.
        keep = visible & ~lost
        first = keep.long().argmax(1, keepdim=True)
        start = positions[-3].expand_as(keep).gather(1, first) - before[:, None]
        counted = start + keep.cumsum(1) - 1
        return torch.where(lost.any(1, keepdim=True), counted, positions - before[:, None])

    def _moved(self, now: Tensor, visible: Tensor) -> None:
        """Note how far the columns of the prompt have moved."""
        length = self.visible.shape[1]
        self.seen.moved[:, self._past :] = now.expand(len(self.visible), -1)[:, : length - self._past]
        self.shift = at_the_end(self.seen.moved, self.visible)

    def _with_features(self, embeds: Tensor, columns: list[Tensor]) -> Tensor:
        """The stock embeddings (B, L, D) with what the pruned model was fed in the columns that stay."""
        fed, out = self.fed[self._calls], embeds.clone()
        assert fed.shape[1] == max(map(len, columns)), (fed.shape[1], max(map(len, columns)))
        for row, some in enumerate(columns):
            short = fed[row, fed.shape[1] - len(some) :]
            real = self.visible.repeat_interleave(len(embeds) // len(self.visible), 0)[row]
            if not self.changed:
                shown = pad(real, (0, embeds.shape[1]), value=True)[self._past :][some]
                assert torch.equal(short[shown], out[row, some][shown]), "features differ from the stock model's"
            out[row, some] = short
        return out

    def _layer(self, i: int, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        hidden = args[0] if args else kwargs["hidden_states"]
        batch, length = hidden.shape[:2]
        cache, mask, total = cache_among(kwargs), kwargs.get("attention_mask"), self._past + length
        width = mask.shape[-1] if mask is not None else total
        if mask is None and getattr(cache, "is_compileable", False):
            width = cache.layers[i].max_cache_len
        order = torch.arange(self._past, total)
        if mask is None:
            mask = (torch.arange(width) <= order[:, None])[None, None]
        assert mask.dtype == torch.bool
        seen = self.seen.layers[i]
        seen = pad(seen, (0, max(0, width - seen.shape[1])), value=True)[:, :width]
        if seen.all():
            return None
        seen = seen.repeat_interleave(batch // len(seen), 0)[:, None, None]
        mask = mask & seen
        # A column that sees nothing would be NaN; it sees itself, and nobody sees it.
        own = torch.nn.functional.one_hot(order, width).bool()
        mask = mask | (own & ~mask.any(-1, keepdim=True))
        return args, {**kwargs, "attention_mask": mask}
