"""What the text model, or a base model that builds masks, is given instead of the caller's arguments."""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from ..device import to_device
from .blocks import shortened
from .cache import Layout, PrunedCacheError, cache_among, layout_of
from .call import ForwardCall
from .decoder_stage import Deep
from .head import labels_above, smoothed_above
from .layer_masks import window_at
from .masks import padding_mask
from .packing import Packing
from .past import Past
from .positions import callers_positions, renumbered
from .vision_stage import Plan

if TYPE_CHECKING:
    from .pruner import Pruner

logger = logging.getLogger(__name__)


def tokens_among(arguments: dict[str, Any]) -> Tensor:
    """The tokens of a call, (B, L) ids or (B, L, D) embeddings."""
    tokens = arguments.get("inputs_embeds")
    return arguments["input_ids"] if tokens is None else tokens


def check_loss_outside(pruner: Pruner, call: ForwardCall) -> None:
    """Say once, in training without labels, that a loss computed outside needs shorter ones.

    Raises:
        ValueError: if pruning was applied to the base model alone and its head was given labels, or if `Trainer` is
            about to smooth labels that it has kept to itself.
    """
    if not pruner.heads and call.frame is not None and labels_above(pruner.base, call.frame):
        raise ValueError(
            "labels were given to a model of which only the base model is pruned, so that they cannot shrink with it; "
            "call apply_pruning on the whole model"
        )
    if not pruner.heads or call.labels is not None or not pruner.text.training:
        return
    if call.frame is not None and smoothed_above(call.frame):
        raise ValueError(
            "Trainer's label_smoothing_factor computes the loss outside the model, with labels as long as the unpruned "
            "sequence; give Trainer a compute_loss_func that calls tokenprune.prune_labels(model, labels)"
        )
    if not pruner.warned:
        pruner.warned = True
        logger.warning(
            "logits of a pruned forward are as long as the pruned sequence: for a loss that is computed outside the "
            "model, shrink its labels with tokenprune.prune_labels(model, labels)"
        )


def base_inputs_on_pruned_cache(pruner: Pruner, arguments: dict[str, Any], cache: Any) -> dict[str, Any]:
    """Arguments of a base model that builds masks, on a cache that was pruned before.

    Masks are to be built for the columns that are there, so whatever has a value for each column is reduced to those;
    positions are left as they would have been.

    Raises:
        PrunedCacheError: for masks that were built in advance.
    """
    new = dict(arguments)
    tokens = tokens_among(new)
    batch, length = tokens.shape[:2]
    past = Past.of(cache, batch, tokens.device)
    layout = layout_of(cache)
    assert layout is not None
    given = new.get("attention_mask")
    if given is not None and (isinstance(given, dict) or given.ndim != 2):
        raise PrunedCacheError(
            f"pruning cannot follow ready-made attention masks on model type {pruner.base.config.model_type!r}; "
            "use the default (dynamic) cache, with which the model builds its own"
        )
    if new.get("position_ids") is None:
        new["position_ids"] = callers_positions({}, past, length) + pruner.family.first_position
    mask = padding_mask(given, cache, batch, length)
    if mask is not None or layout.padded:
        new["attention_mask"] = layout.mask(mask, past.physical + length)
    for name, value in new.items():
        if name.endswith("token_type_ids") and isinstance(value, Tensor) and value.shape[-1] == past.logical + length:
            held = past.columns.to(value.device)
            new[name] = torch.cat([value.expand(batch, -1).gather(1, held), value[:, past.logical :]], 1)
    if "cache_position" in pruner.base_arguments:
        new["cache_position"] = past.physical + torch.arange(length, device=tokens.device)
    return new


def prune_text_inputs(
    pruner: Pruner, call: ForwardCall, plan: Plan, packing: Packing, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of the text model without the columns that go.

    Raises:
        ValueError: for a static cache where masks are built above the text model.
    """
    cache, family = cache_among(arguments), pruner.family
    device, (batch, length) = plan.embeds.device, plan.stays.shape
    if family.masks == "base" and getattr(cache, "is_compileable", False):
        raise ValueError(
            f"pruning cannot shrink the masks that model type {pruner.base.config.model_type!r} builds for a static "
            "cache, in which pictures attend to themselves both ways; use the default (dynamic) cache"
        )
    past = Past.of(cache, batch, device)
    keep = to_device(plan.stays & plan.real, device)
    new = {**arguments, **family.extras(arguments, keep, packing)}
    new["inputs_embeds"] = plan.fed
    positions, shift = callers_positions(arguments, past, length), past.shift
    if pruner.positions == "compact":
        unpruned = to_device(plan.stays, device)
        positions, shift = renumbered(family.positions, positions, unpruned, keep, past.shift)
    elif past.shifted:
        positions = positions - past.shift[:, None]
    new["position_ids"] = packing.take_last(positions)
    # Always an explicit mask: without one, gaps in positions are read as packed sequences.
    valid = torch.cat([past.mask(plan.mask), packing.valid], 1)
    new["attention_mask"] = valid
    if family.masks == "base":
        window = getattr(pruner.text.config, "sliding_window", None)
        new["attention_mask"] = shortened(arguments.get("attention_mask"), packing, past, valid, window)
    if pruner.reads_cache_position:
        new["cache_position"] = torch.arange(past.physical, valid.shape[1], device=valid.device)

    if plan.host_packing is not None and not bool(plan.host_packing.held.all()):
        refuse_windows_with_a_past(pruner, past, valid.shape[1])
    columns = torch.cat([past.columns, past.logical + packing.index], 1)
    call.layout = Layout(columns, valid, past.logical + length, shift, weakref.ref(pruner.base))
    call.shrunk = True
    call.outputs_follow(packing, length)
    check_loss_outside(pruner, call)
    if pruner.deep is not None:
        call.deep = begin_decoder_stage(pruner, cache, past, plan)
    return new


def begin_decoder_stage(pruner: Pruner, cache: Any, past: Past, plan: Plan) -> Deep | None:
    """What the upper layers need to know of a prefill; None where they hold what the lower ones do."""
    assert pruner.deep is not None
    visual, differs = plan.deep_inputs(), past.layout is not None and bool(past.layout.upper)
    if not differs and not any(visual):
        return None
    device, (batch, length) = plan.embeds.device, plan.stays.shape
    refuse_windows_with_a_past(pruner, past, past.physical + length)
    if plan.packing is None or plan.host_packing is None:
        real, asked, valid = plan.real, plan.asked, to_device(plan.real, device)
        columns = torch.arange(length, device=device).expand(batch, -1)
    else:
        real, valid, columns = plan.host_packing.valid, plan.packing.valid, plan.packing.index
        asked = plan.host_packing.take(plan.asked) & real
    return Deep(
        past=[past.upper(cache, layer, plan.mask) for layer in pruner.deep.layers],
        embeds=plan.fed,
        columns=past.logical + columns,
        valid=valid,
        real=real,
        asked=asked,
        below=torch.cat([past.mask(plan.mask), valid], 1),
        below_columns=torch.cat([past.columns, past.logical + columns], 1),
        seen=past.logical + length,
        differs=differs,
        visual=visual,
        records=plan.records,
    )


def refuse_checkpointing(pruner: Pruner) -> None:
    """Raise `ValueError` where gradient checkpointing runs layers again together with their hooks.

    It does so before some transformers 5.x. The second time no call is in flight, so that stages that act at layers
    would not act.
    """
    tower = None if pruner.tower is None else pruner.tower.layers
    acting = [layer for layers in ((pruner.deep and pruner.text.layers), tower) for layer in layers or ()]
    for layer in acting:
        if getattr(layer, "gradient_checkpointing", False) and type(layer).__call__ is not nn.Module.__call__:
            raise ValueError(
                f"gradient checkpointing under transformers {transformers.__version__} runs layers twice with their "
                "hooks, which policies that act inside the decoder or the vision tower cannot follow; use a policy of "
                "the vision stage, or model.gradient_checkpointing_disable()"
            )


def refuse_windows_with_a_past(pruner: Pruner, past: Past, total: int) -> None:
    """Raise `PrunedCacheError` for a picture in a later turn where a sliding window ends inside the talk.

    Windows count the columns that a cache holds, so the padding between turns of rows that lose different numbers of
    tokens would use them up.
    """
    config = pruner.text.config
    windows = [window for i in range(len(pruner.text.layers)) if (window := window_at(config, i)) is not None]
    if past.physical and windows and min(windows) < total:
        raise PrunedCacheError(
            "a picture in a later turn is not supported on sliding-window layers with pruning once the talk is longer "
            f"than the window of {min(windows)}, in a batch of rows or with a decoder-stage policy; start a fresh cache"
        )


def layout_after(pruner: Pruner, call: ForwardCall, cache: Any) -> Layout | None:
    """What the cache holds after a call of the text model; None where nothing has changed in that."""
    layout, deep = call.layout, call.deep
    if deep is None or deep.visual is None or not deep.changed:
        return layout
    assert pruner.deep is not None
    if layout is None:  # the layers below the decoder stage hold all of this call
        batch, device = len(deep.below), deep.below.device
        before = layout_of(cache)
        shift = torch.zeros(batch, dtype=torch.int64, device=device) if before is None else before.shift
        layout = Layout(deep.below_columns, deep.below, deep.seen, shift, weakref.ref(pruner.base))
    layout.upper = dict(zip(pruner.deep.layers, deep.held, strict=True))
    return layout


def continue_pruned_cache(
    pruner: Pruner, call: ForwardCall, layout: Layout, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of a call that prunes nothing, on a cache that was pruned before."""
    cache = cache_among(arguments)
    tokens = tokens_among(arguments)
    batch, length = tokens.shape[:2]
    past = Past.of(cache, batch, tokens.device)
    new = dict(arguments)
    positions = callers_positions(arguments, past, length)
    if layout.shifted:
        positions = positions - past.shift[:, None]
    new["position_ids"] = positions
    mask = None
    if pruner.family.masks == "text":
        given = arguments.get("attention_mask")
        mask = padding_mask(given, cache, batch, length)
        if mask is not None or layout.padded:
            new["attention_mask"] = layout.mask(mask, past.physical + length)
        elif isinstance(given, dict) or (given is not None and given.ndim == 4):
            new["attention_mask"] = None  # it was made for the columns that the caller counts
    if layout.upper and call.deep is None:
        upper = [past.upper(cache, layer, mask) for layer in layout.upper]
        valid = layout.mask(mask, past.physical + length)
        columns = past.logical + torch.arange(length, device=valid.device).expand(batch, -1)
        below = torch.cat([past.columns, columns], 1)
        call.deep = Deep(upper, columns, valid[:, -length:], valid, below, past.logical + length, differs=True)
    if pruner.reads_cache_position:
        new["cache_position"] = past.physical + torch.arange(length, device=tokens.device)
    return new


def check_decoder_layers(pruner: Pruner, layout: Layout | None) -> None:
    """Raise `PrunedCacheError` for a cache whose upper layers were cut where this pruning has no hooks."""
    layers = [] if pruner.deep is None else pruner.deep.layers
    if layout is not None and layout.upper and list(layout.upper) != layers:
        raise PrunedCacheError(
            "this KV cache was filled by a policy that dropped tokens at decoder layer "
            f"{' and '.join(map(str, layout.upper))}, and another is applied now; go on with a fresh cache, "
            "or apply that policy again"
        )
