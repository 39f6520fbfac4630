"""The layout that travels with a KV cache: which columns of the prompt it holds.

A pruned cache has two lengths. The *logical* one counts every column the caller has fed, pruned ones
included; `generate` slices, counts and positions by it. The *physical* one is what the tensors hold;
masks are built from it. The layout lives on the cache, never on the model, so that two requests, two
threads or two turns cannot see each other's.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache as memoize
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..pickling import Unpicklable
from .cache_errors import PrunedCacheError
from .static_columns import static_columns

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

    from .visual_marks import VisualMarks

    _Cache = Cache
else:  # a mixin: the class of the cache at hand comes after it
    _Cache = object

#: Attribute of a pruned base model; where it is missing, pruning was removed.
STATE_ATTRIBUTE = "_tokenprune"


@memoize
def cache_name() -> str:
    """What models call the KV cache, in their arguments and in their outputs: renamed in transformers 5.24."""
    from transformers.masking_utils import create_causal_mask

    return "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


def cache_among(arguments: Mapping[str, Any]) -> Any:
    """The KV cache in a model's keyword arguments, under its name or its former one; None without one."""
    cache = arguments.get("cache")
    return arguments.get("past_key_values") if cache is None else cache


@dataclass
class ColumnLayout:
    """Which of the columns fed so far some layers of a cache hold.

    Attributes:
        columns: (B, P) int64, the logical column of each physical one, for the columns up to the last
            pruned prefill. Columns fed after that are held one to one.
        valid: (B, P) bool, False at padding.
        logical_length: how many logical columns `columns` stands for.
    """

    columns: Tensor
    valid: Tensor
    logical_length: int

    def columns_until(self, logical: int) -> Tensor:
        """(B, P + decoded) int64: `columns`, and those fed since, up to a logical length."""
        decoded = torch.arange(self.logical_length, logical, device=self.columns.device).expand(len(self.columns), -1)
        return torch.cat([self.columns, decoded], 1)

    def mask(self, logical: Tensor | None, length: int) -> Tensor:
        """The padding mask over `length` physical columns, (B, length) bool.

        Args:
            logical: (B, >= logical_length) 2-D mask over logical columns, or None if the caller has no padding.
            length: physical columns wanted, those decoded since the prefill included.
        """
        prompt = self.valid
        later = length - prompt.shape[1]
        if logical is None:
            return torch.cat([prompt, prompt.new_ones(len(prompt), later)], 1)
        logical = logical.to(prompt.device).bool()
        tail = logical[:, self.logical_length : self.logical_length + later]
        if tail.shape[1] < later:  # columns of a static cache that are yet to be fed
            tail = torch.cat([tail, tail.new_ones(len(tail), later - tail.shape[1])], 1)
        return torch.cat([prompt & logical.gather(1, self.columns), tail], 1)

    def check_crop(self, dropped: int) -> None:
        """Raise unless the last `dropped` columns of the prompt are held by every row."""
        ends = torch.arange(self.logical_length - dropped, self.logical_length, device=self.columns.device)
        if dropped > self.columns.shape[1] or not bool((self.columns[:, -dropped:] == ends).all()):
            raise PrunedCacheError(
                f"cannot crop a pruned cache into its pruned part (the last {dropped} prompt columns hold "
                "visual tokens or differ from row to row); crop less, or start from a fresh cache"
            )

    def crop(self, dropped: int) -> None:
        self.columns, self.valid = self.columns[:, :-dropped], self.valid[:, :-dropped]
        self.logical_length -= dropped

    def select_rows(self, rows: Tensor) -> None:
        rows = rows.to(self.columns.device)
        self.columns, self.valid = self.columns[rows], self.valid[rows]


@dataclass
class Layout(ColumnLayout):
    """What a pruned KV cache holds.

    Attributes:
        shift: (B,) int64, what compact positions have moved left by (0 for original positions).
        model: the base model whose hooks map masks through this layout.
        by_decoder_layer: the layout at and above each decoder cut, keyed by the cut's layer; empty without cuts.
        marks: where it holds pictures, with `history`; else None.
        padded: whether any column is padding.
        padded_above: whether any column is padding at or above a decoder cut.
        shifted: whether any position has moved.
    """

    shift: Tensor
    model: weakref.ref[nn.Module]
    by_decoder_layer: dict[int, ColumnLayout] = field(default_factory=dict)
    marks: VisualMarks | None = None
    padded: bool = field(init=False)
    padded_above: bool = field(init=False, default=False)
    shifted: bool = field(init=False)

    def __post_init__(self) -> None:
        # Read at every decode step: waiting for the device each time would stall it.
        self.padded, self.shifted = torch.stack([~self.valid.all(), self.shift.any()]).tolist()

    def hold_above(self, by_decoder_layer: dict[int, ColumnLayout]) -> None:
        """Note what the layers at and above each decoder cut hold."""
        self.by_decoder_layer = by_decoder_layer
        # At most one copy from the device: all of them live on it.
        self.padded_above = bool(torch.stack([~part.valid.all() for part in by_decoder_layer.values()]).any())

    @property
    def removed(self) -> int:
        """Logical minus physical length; constant until the next pruned prefill."""
        return self.logical_length - self.columns.shape[1]

    def crop(self, dropped: int) -> None:
        """Forget the last `dropped` columns of the prompt; they must not have been pruned around."""
        for part in (self, *self.by_decoder_layer.values()):
            part.check_crop(dropped)
        super().crop(dropped)
        for part in self.by_decoder_layer.values():
            part.crop(dropped)
        self.marks = None if self.marks is None else self.marks.until(self.logical_length)

    def select_rows(self, rows: Tensor) -> None:
        super().select_rows(rows)
        self.shift = self.shift[rows.to(self.shift.device)]
        self.marks = None if self.marks is None else self.marks.select_rows(rows)
        for part in self.by_decoder_layer.values():
            part.select_rows(rows)

    def repeat_rows(self, repeats: int) -> None:
        self.select_rows(torch.arange(len(self.columns)).repeat_interleave(repeats))


class _PrunedCache(Unpicklable, _Cache):
    """Mixin over a cache class: logical length outside, physical length inside, layout kept in step.

    Attributes:
        layout: what it holds; None after `reset`.
        hooked: the call of a pruned model that reads it at the moment, whose hooks know the layout; None between calls.
        last_layer: index of the layer that was updated last; larger than any before the first.
        callers_mask: (B, L) padding mask over logical columns, or None, that `generate` was about to make a 4-D mask
            of; `...` where it did not, and once it is used.
        static_columns: what all layers of a static cache have room for; None for other caches.
        begins_turn: whether `generate` has said that the next call begins a turn; None: it has not.
    """

    what = "the KV cache of a pruned model"
    advice = (
        "it belongs to the model of this process; feed the prompt again in the other one, or call "
        "remove_pruning(model) before a cache is filled that has to travel"
    )
    layout: Layout | None
    hooked: Any = None
    last_layer: int = sys.maxsize
    callers_mask: Any = ...
    static_columns: int | None = None
    begins_turn: bool | None = None

    def update(self, *args: Any, **kwargs: Any) -> Any:
        layer = args[2] if len(args) > 2 else kwargs["layer_idx"]
        # Once per pass through the layers: a pass of another model begins below the last layer of this one.
        if layer <= self.last_layer and self.layout is not None and not self._is_hooked():
            self._check_hooks()
            raise PrunedCacheError(
                "this KV cache was filled by a pruned model and is read by one without pruning (a copy, perhaps); go "
                "on with the model that filled it, or start from a fresh cache"
            )
        self.last_layer = layer
        return super().update(*args, **kwargs)

    def _is_hooked(self) -> bool:
        # A call that was interrupted has not released the cache. A compiler cannot look at frames.
        return self.hooked is not None and (torch.compiler.is_compiling() or self.hooked.running)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        hooked, self.hooked = self.hooked, None  # a copy is nobody's yet
        try:
            return super().__deepcopy__(memo)
        finally:
            self.hooked = hooked

    def physical_length(self, layer_idx: int = 0) -> Any:
        return super().get_seq_length(layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        if self.layout is None:
            return self.physical_length(layer_idx)
        return self.physical_length() + self.layout.removed  # the same for all layers

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        self._check_hooks()
        return self.physical_length(layer_idx)

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> Any:
        self._check_hooks()
        return super().get_mask_sizes(*args, **kwargs)

    def _check_hooks(self) -> None:
        """Without the hooks, a stock model would read the logical mask against physical columns."""
        if self.layout is None or torch.compiler.is_compiling():
            return  # where a compiler traces, `update` refuses such a model
        model: Any = self.layout.model  # where one has traced the prefill, it has put the model for the reference
        if getattr(model() if isinstance(model, weakref.ref) else model, STATE_ATTRIBUTE, None) is None:
            raise PrunedCacheError(
                "this KV cache was filled with pruning applied, which has been removed since (or the model "
                "is gone); go on with a fresh cache, or apply pruning again"
            )

    def crop(self, *args: Any, **kwargs: Any) -> None:
        if self.layout is None:
            return super().crop(*args, **kwargs)
        (amount,) = args or kwargs.values()
        length = self.get_seq_length()
        # transformers < 5.2x names an absolute length, newer ones a negative number of tokens to remove
        absolute = "max_length" in inspect.signature(super().crop).parameters
        remove = -amount if amount < 0 else max(0, length - amount) if absolute else 0
        if amount > 0 and not absolute:
            return super().crop(amount)  # raises, naming the argument
        if remove == 0:
            return super().crop(0 if not absolute else self.physical_length())
        decoded = length - self.layout.logical_length
        if remove > decoded:
            self.layout.crop(remove - decoded)
        super().crop(-remove)

    def reset(self) -> None:
        self.layout = None
        super().reset()  # type: ignore[no-untyped-call]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]  # any integers will do
        if self.layout is not None:
            self.layout.select_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        if self.layout is not None:
            self.layout.select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.layout is not None:
            self.layout.repeat_rows(repeats)


@memoize
def _pruned_class(cls: Any) -> Any:
    return type(f"Pruned{cls.__name__}", (_PrunedCache, cls), {"__module__": cls.__module__})


def adopt(cache: Cache, layout: Layout) -> None:
    """Give a cache object its layout; the object changes class to a subclass of its own."""
    if not isinstance(cache, _PrunedCache):
        cache.__class__ = _pruned_class(type(cache))  # type: ignore[arg-type]
        # As after any step, so that a compiler finds the same before the first one.
        vars(cache).update(hooked=None, callers_mask=..., begins_turn=None, last_layer=len(cache.layers) - 1)
    cache.layout, cache.static_columns = layout, static_columns(cache)  # type: ignore[attr-defined]


def layout_of(cache: Any) -> Layout | None:
    """The layout of a cache, or None if nothing was ever pruned from it."""
    return cache.layout if isinstance(cache, _PrunedCache) else None


def physical_length(cache: Any, layer_idx: int = 0) -> int:
    """Columns the tensors of a layer of a cache (or of None) hold."""
    if cache is None:
        return 0
    return int(cache.physical_length(layer_idx) if isinstance(cache, _PrunedCache) else cache.get_seq_length(layer_idx))
