"""Pictures of earlier turns shrink in the KV cache, on all layers, when a new turn arrives.

Keys hold their positions, so what stays needs no new encoding: columns leave the tensors of every layer, and the layout
on the cache says which are left. From then on the cache is as if the others were masked.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

import torch
from torch import Tensor

from ..device import to_device
from ..policies.run import run_policy
from ..policies.types import VisualTokens
from .cache import ColumnLayout, Layout, adopt, layout_of, physical_length
from .cache_errors import PrunedCacheError
from .call import guarded
from .config import PruningConfig
from .packing import Packing
from .past import Past
from .vision_selection import VisionSelection
from .visual_inputs import VisualInputs
from .visual_marks import VisualMarks

logger = logging.getLogger(__name__)

#: Layers of a cache whose columns can leave; those of other kinds with keys are refused.
_LAYERS = ("DynamicLayer", "LinearAttentionAndFullAttentionLayer")


def begins_turn(cache: Any, length: int) -> bool:
    """Whether a call on a cache begins a turn: `generate` says so; of a call by hand, that it feeds several tokens."""
    noted, cache.begins_turn = cache.begins_turn, None
    return length > 1 if noted is None else bool(noted)


def shrink_earlier_pictures(config: PruningConfig, cache: Any, length: int) -> None:
    """Let tokens of pictures of earlier turns leave the cache, if a call of `length` columns begins a turn.

    Raises:
        PrunedCacheError: for a cache whose columns cannot leave.
    """
    layout, history = layout_of(cache), config.history
    if layout is None or history is None or not begins_turn(cache, length) or layout.marks is None:
        return
    logical = int(cache.get_seq_length())
    marks = layout.marks.until(logical)
    numbers = marks.inputs.cpu()
    if not bool(numbers.any()):
        return
    layers = [layer for layer in cache.layers if isinstance(getattr(layer, "keys", None), Tensor)]
    unfit = {type(layer).__name__ for layer in layers} - set(_LAYERS)
    if unfit or getattr(cache, "is_compileable", False):
        raise PrunedCacheError(
            f"history={history.keep!r} lets columns leave the KV cache, which {', '.join(sorted(unfit))} cannot "
            "follow; use the default (dynamic) cache, or leave history out"
        )
    before = physical_length(cache)
    _shrink(config, cache, layout, marks, numbers)
    logger.debug("history: %d of %d columns of the cache are left", physical_length(cache), before)


def _shrink(config: PruningConfig, cache: Any, layout: Layout, marks: VisualMarks, numbers: Tensor) -> None:
    """Choose what stays, take the rest out of all layers, and note what they hold now."""
    logical = numbers.shape[1]
    parts = {0: layout, **layout.by_decoder_layer}  # by the first layer that holds these columns
    held = {first: _held(part, logical) for first, part in parts.items()}
    values = next(layer.values for layer in cache.layers if isinstance(getattr(layer, "values", None), Tensor))
    stays = _chosen(config, values, marks, numbers, [held[min(held)], held[max(held)]])
    new: dict[int, ColumnLayout] = {}
    packings: dict[int, Packing] = {}
    for first, (columns, valid) in held.items():
        keep = stays.gather(1, columns)
        packing = Packing.of(keep, valid)
        packings[first] = packing
        device = parts[first].columns.device
        taken = to_device(packing.take(columns), device)
        new[first] = ColumnLayout(taken, to_device(packing.valid, device), logical)
    made: list[tuple[Any, Tensor, Tensor]] = []
    for i, layer in enumerate(cache.layers):
        if isinstance(getattr(layer, "keys", None), Tensor):
            packing = packings[max(first for first in packings if first <= i)]
            made.append((layer, _taken(layer.keys, packing), _taken(layer.values, packing)))
    base = new.pop(0)
    shrunk = Layout(base.columns, base.valid, logical, layout.shift, weakref.ref(config.base))
    if new:
        shrunk.hold_above(new)
    shrunk.marks = VisualMarks(torch.zeros_like(marks.inputs), {})  # what is left of these pictures stays
    for layer, keys, values in made:  # at once, when all are there: an interrupt before leaves the cache as it was
        layer.keys, layer.values = keys, values
    adopt(cache, shrunk)


def _held(part: ColumnLayout, logical: int) -> tuple[Tensor, Tensor]:
    """(B, P) logical columns that some layers hold, and which are no padding, on the host."""
    columns = part.columns_until(logical).cpu()
    valid = torch.nn.functional.pad(part.valid.cpu(), (0, columns.shape[1] - part.valid.shape[1]), value=True)
    return columns, valid


def _taken(tensor: Tensor, packing: Packing) -> Tensor:
    """(B, H, M, d) of the (B, H, P, d) keys or values of a layer."""
    index = to_device(packing.index, tensor.device)[:, None, :, None]
    return tensor.gather(2, index.expand(-1, tensor.shape[1], -1, tensor.shape[3]))


def _chosen(
    config: PruningConfig, values: Tensor, marks: VisualMarks, numbers: Tensor, held: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """(B, L) bool on the host, False at logical columns that leave.

    A policy chooses by the values of the first layer, which no position has turned. It chooses among the tokens that
    the last layers hold, or among those of the first where the last hold fewer than are to stay.

    Args:
        config: of the pruning.
        values: (B, H, P, d) of the first layer.
        marks: the pictures.
        numbers: (B, L), their numbers, on the host.
        held: columns and validity in the first layers and in the last.
    """
    assert config.history is not None
    stays = numbers == 0
    inputs, n_keep, places = [], [], []
    for row in range(len(numbers)):
        columns, valid = held[0][0][row], held[0][1][row]
        in_last = torch.zeros(numbers.shape[1], dtype=torch.bool)
        in_last[held[1][0][row][held[1][1][row]]] = True
        found = torch.where(valid, numbers[row][columns], 0)
        for number in found.unique().tolist():
            if number == 0:
                continue
            physical = (found == number).nonzero()[:, 0]
            wanted = config.history.count(marks.sizes[number])
            upper = physical[in_last[columns[physical]]]
            physical = upper if len(upper) >= wanted else physical
            if wanted >= len(physical):
                stays[row, columns[physical]] = True
            elif wanted:
                picked = to_device(physical, values.device)
                inputs.append(VisualTokens(values[row][:, picked].transpose(0, 1).flatten(1)))
                n_keep.append(wanted)
                places.append((row, columns[physical]))
    if inputs:
        with guarded():
            answers = run_policy(config.history.chooser, inputs, n_keep)
        for (row, columns), answer in zip(places, answers, strict=True):
            stays[row, columns[answer.indices]] = True
    return stays


def marked_layout(
    config: PruningConfig, visual: VisualInputs, cache: Any, selection: VisionSelection, pruned: Layout | None
) -> Layout:
    """What a cache holds after a call with pictures, which marks them for later turns.

    Args:
        config: of the pruning.
        visual: the pictures of the call.
        cache: as it was before the call, or None.
        selection: what stays of the call.
        pruned: its layout where tokens leave before the decoder; else all columns of the call are held.
    """
    batch, length = selection.keep_mask.shape
    device = selection.embeds.device
    past = Past.of(cache, batch, device)
    layout = pruned
    if layout is None:
        columns = past.logical + torch.arange(length, device=device).expand(batch, -1)
        valid = torch.cat([past.mask(selection.mask), to_device(selection.not_padding, device)], 1)
        columns = torch.cat([past.columns, columns], 1)
        layout = Layout(columns, valid, past.logical + length, past.shift, weakref.ref(config.base))
    before = None if past.layout is None else past.layout.marks
    marks = VisualMarks.none(batch, device) if before is None else before
    layout.marks = marks.until(past.logical).followed_by(visual.inputs(), length)
    return layout
