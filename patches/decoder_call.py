"""State of the decoder stage in one forward call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .cache import ColumnLayout, Layout, physical_length
from .packing import Packing
from .report import Cut, Record


@dataclass(frozen=True)
class DecoderInput:
    """A visual input's surviving tokens, where the decoder has them.

    Attributes:
        record: index of its record in the report.
        columns: (N,) int64 on the host, in this call's sequence as it stands.
        indices: of those tokens, within the input.
        n_keep: how many the budget leaves after the last cut.
        entered: how many there were when the text model began.
        counts: how many the budget leaves after each cut, by its layer.
    """

    record: int
    columns: Tensor
    indices: list[int]
    n_keep: int
    entered: int
    counts: Mapping[int, int]


@dataclass
class Prefill:
    """What a decoder stage needs in a call that may drop tokens, as it stands at the layer that is running.

    Attributes:
        inputs: per row, the visual inputs that may lose tokens.
        records: the report of this call.
        not_padding: (B, M) bool on the host.
        prompt: (B, M) bool on the host, False at padding and at an answer so far.
        embeds: (B, M', D), what the text model was fed.
        heads: query, key and scaling of the layer below a cut.
        memory: the policy's own notes, by row.
    """

    inputs: list[list[DecoderInput]]
    records: list[Record]
    not_padding: Tensor
    prompt: Tensor
    embeds: Tensor
    heads: tuple[Tensor, Tensor, float | None] | None = None
    memory: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add_time(self, asked: list[DecoderInput], ms: float) -> None:
        """Share out the time that choosing among some inputs took, milliseconds, by their tokens."""
        total = sum(len(each.indices) for each in asked)
        for each in asked:
            record = self.records[each.record]
            self.records[each.record] = record.with_time("decoder", ms * len(each.indices) / total)

    def drop(self, layer: int, keep_mask: Tensor, packing: Packing) -> None:
        """Go on with the columns that are left, and note the cut in the report.

        Args:
            layer: before which they leave.
            keep_mask: (B, M) bool on the host, False at columns that leave.
            packing: of what stays, on the host.
        """
        new_columns = packing.inverse_index(keep_mask.shape[1])
        for row, inputs in enumerate(self.inputs):
            rest = (self._rest(layer, each, keep_mask[row], new_columns[row]) for each in inputs)
            self.inputs[row] = [each for each in rest if each is not None]
        self.not_padding = packing.valid
        self.prompt = packing.take(self.prompt) & packing.valid

    def _rest(self, layer: int, given: DecoderInput, keep_mask: Tensor, new_columns: Tensor) -> DecoderInput | None:
        """What is left of an input; `keep_mask` and `new_columns` by columns of its row."""
        keep = keep_mask[given.columns]
        indices = [j for j, k in zip(given.indices, keep.tolist(), strict=True) if k]
        if len(indices) < len(given.indices):
            record = self.records[given.record]
            self.records[given.record] = replace(record, cuts=(*record.cuts, Cut(layer, indices)))
        if not indices:
            return None
        columns = new_columns[given.columns[keep]]
        return replace(given, columns=columns, indices=indices, n_keep=min(given.n_keep, len(indices)))


@dataclass
class DecoderContinuation:
    """The layers from the first decoder cut on, in a call that drops nothing on a cache that was cut before.

    Attributes:
        layout: of the cache.
        cache: the KV cache.
        logical_mask: (B, >= logical length) bool padding mask over logical columns, or None for no padding.
        length: columns of this call.
        static: what each layer of a static cache has room for; None for other caches.
        masks: attention masks that were made, by layer of the cut and kind of layer.
        sees_all: whether a layer without a window sees all that it holds, if those below the cuts do.
        totals: columns that the layers from each decoder cut on hold after this call, by layer of the cut; those that a
            static cache has room for.
    """

    layout: Layout
    cache: Any
    logical_mask: Tensor | None
    length: int
    static: int | None = None
    masks: dict[Any, Any] = field(default_factory=dict)
    sees_all: bool = field(init=False)
    totals: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        # Now, since the cache grows layer by layer while the call runs.
        self.totals = {
            cut: physical_length(self.cache, cut) + self.length if self.static is None else self.static
            for cut in self.layout.by_decoder_layer
        }
        self.sees_all = self.length == 1 and not self.layout.padded_above

    def valid(self, cut: int, device: torch.device) -> Tensor:
        """(B, P + M) bool, False at padding of the layers from the decoder cut `cut` to the next."""
        return self.layout.by_decoder_layer[cut].mask(self.logical_mask, self.totals[cut]).to(device)


class Continuing(Protocol):
    """A call that goes on with a cache that was pruned before."""

    @property
    def decoder(self) -> Any: ...

    continuation: DecoderContinuation | None


@dataclass
class DecoderCall:
    """The layers from the first decoder cut on, in one forward call, as it stands at the layer that is running.

    A stretch of layers begins at each cut.

    Attributes:
        past: per stretch, what its layers held before this call.
        columns: (B, M) int64, logical columns of this call's sequence as it stands.
        valid: (B, M) bool, False at its padding.
        columns_below_first_cut: (B, P + M) int64, the logical columns that the layers under the first cut hold.
        padding_below_first_cut: (B, P + M) bool, False at their padding.
        logical_length: logical columns after this call.
        differs: whether upper layers hold other columns than the lower ones already.
        prefill: what is needed to drop tokens in this call.
        layouts: per stretch that has begun, what its layers hold after this call.
        packing: which columns have left in this call, all in all.
        masks: attention masks of the stretch that runs, by kind of layer.
        embeddings: rotary embeddings of the columns that are left, by id of those of all.
    """

    past: list[ColumnLayout]
    columns: Tensor
    valid: Tensor
    columns_below_first_cut: Tensor
    padding_below_first_cut: Tensor
    logical_length: int
    differs: bool
    prefill: Prefill
    layouts: list[ColumnLayout] = field(default_factory=list)
    packing: Packing | None = None
    masks: dict[Any, Any] = field(default_factory=dict)
    embeddings: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    @property
    def sees_all(self) -> bool:
        """Whether all that the running layers hold comes from this call, and none of it is padding."""
        return self.past[len(self.layouts) - 1].columns.shape[1] == 0 and bool(self.prefill.not_padding.all())

    @property
    def changed(self) -> bool:
        """Whether the layers that run hold other columns than those under the first cut."""
        return self.packing is not None or self.differs

    def shrink(self, packing: Packing) -> Packing:
        """Go on with the columns that are left.

        Args:
            packing: of what stays, on the host.

        Returns:
            the same on the device.
        """
        left = packing.to(self.valid.device)
        self.columns, self.valid = left.take(self.columns), left.valid
        self.packing = left.after(self.packing)
        self.embeddings.clear()
        return left

    def begin_stretch(self) -> None:
        """Note what the layers of the next stretch hold after this call."""
        past = self.past[len(self.layouts)]
        columns, valid = torch.cat([past.columns, self.columns], 1), torch.cat([past.valid, self.valid], 1)
        self.layouts.append(ColumnLayout(columns, valid, self.logical_length))
        self.masks.clear()

    def rotary(self, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Rotary embeddings, (..., B or 1, M, d), of the columns that are left."""
        if self.packing is None:
            return embeddings
        key = id(embeddings[0])
        if key not in self.embeddings:
            # The last axis goes first, so that the gather of position ids serves.
            take = self.packing.take_last
            self.embeddings[key] = tuple(take(part.movedim(-1, 0)).movedim(0, -1) for part in embeddings)
        return self.embeddings[key]

    @property
    def padding(self) -> Tensor:
        """(B, P + M) bool, False at padding of the layer below the one that is running."""
        return self.layouts[-1].valid if self.layouts else self.padding_below_first_cut
