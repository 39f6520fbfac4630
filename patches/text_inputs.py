"""What the text model, or a base model that builds masks, is given instead of the caller's arguments."""

from __future__ import annotations

import logging
import weakref
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from ..device import to_device
from .cache import Layout, cache_among, layout_of
from .cache_errors import PrunedCacheError
from .call import ForwardCall
from .config import PruningConfig
from .decoder_call import Continuing, DecoderCall, DecoderContinuation, Prefill
from .families.base import MaskInputs, PrunedSequence
from .head import labels_above, smoothed_above
from .masks import gather_block_masks, padding_mask, window_at
from .past import Past
from .positions import callers_positions, renumbered
from .vision_selection import VisionSelection

logger = logging.getLogger(__name__)


def tokens_among(arguments: dict[str, Any]) -> Tensor:
    """The tokens of a call, (B, L) ids or (B, L, D) embeddings."""
    tokens: Tensor | None = arguments.get("inputs_embeds")
    if tokens is None:
        tokens = arguments["input_ids"]
    return tokens


def loss_is_outside(config: PruningConfig, call: ForwardCall) -> bool:
    """Whether a model in training was given no labels, so that its loss is computed outside.

    Raises:
        ValueError: if pruning was applied to the base model alone and its head was given labels, or if `Trainer` is
            about to smooth labels that it has kept to itself.
    """
    if not config.heads and call.frame is not None and labels_above(config.base, call.frame):
        raise ValueError(
            "labels were given to a model of which only the base model is pruned, so that they cannot shrink with it; "
            "call apply_pruning on the whole model"
        )
    if not config.heads or call.labels is not None or not config.text.training:
        return False
    if call.frame is not None and smoothed_above(call.frame):
        raise ValueError(
            "Trainer's label_smoothing_factor computes the loss outside the model, with labels as long as the unpruned "
            "sequence; give Trainer a compute_loss_func that calls tokenprune.prune_labels(model, labels)"
        )
    return True


def base_inputs_on_pruned_cache(config: PruningConfig, arguments: dict[str, Any], cache: Any) -> dict[str, Any]:
    """Arguments of a base model that builds masks, on a cache that was pruned before.

    Masks are to be built for the columns that are there. So what has a value for each column is reduced to those;
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
            f"pruning cannot follow ready-made attention masks on model type {config.base.config.model_type!r}; "
            "use the default (dynamic) cache, with which the model builds its own"
        )
    if new.get("position_ids") is None:
        new["position_ids"] = callers_positions({}, past, length) + config.family.first_position
    mask = padding_mask(given, cache, batch, length)
    if mask is not None or layout.padded:
        new["attention_mask"] = layout.mask(mask, past.physical + length)
    for name, value in new.items():
        if name.endswith("token_type_ids") and isinstance(value, Tensor) and value.shape[-1] == past.logical + length:
            held = past.columns.to(value.device)
            new[name] = torch.cat([value.expand(batch, -1).gather(1, held), value[:, past.logical :]], 1)
    if "cache_position" in config.base_arguments:
        new["cache_position"] = past.physical + torch.arange(length, device=tokens.device)
    return new


def prune_text_inputs(
    config: PruningConfig, call: ForwardCall, selection: VisionSelection, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of the text model without the columns that are pruned; the call's layout and outputs follow.

    Raises:
        ValueError: for a static cache where masks are built above the text model.
    """
    packing, packing_cpu = selection.packing, selection.packing_cpu
    assert packing is not None and packing_cpu is not None
    cache, family = cache_among(arguments), config.family
    device, (batch, length) = selection.embeds.device, selection.keep_mask.shape
    if family.masks == "base" and getattr(cache, "is_compileable", False):
        raise ValueError(
            f"pruning cannot shrink the masks that model type {config.base.config.model_type!r} builds for a static "
            "cache, in which pictures attend to themselves both ways; use the default (dynamic) cache"
        )
    past = Past.of(cache, batch, device)
    keep = to_device(selection.keep_mask & selection.not_padding, device)
    new = {**arguments, **family.extras(PrunedSequence(arguments, keep, packing))}
    new["inputs_embeds"] = selection.pruned_embeds
    positions, shift = callers_positions(arguments, past, length), past.shift
    if config.positions == "compact":
        keep_mask = to_device(selection.keep_mask, device)
        positions, shift = renumbered(family.positions, positions, keep_mask, keep, past.shift)
    elif past.shifted:
        positions = positions - past.shift[:, None]
    new["position_ids"] = packing.take_last(positions)
    # Always an explicit mask: without one, gaps in positions are read as packed sequences.
    valid = torch.cat([past.mask(selection.mask), packing.valid], 1)
    new["attention_mask"] = valid
    if family.build_masks is not None:
        embeds = selection.pruned_embeds
        new["attention_mask"] = family.build_masks(
            MaskInputs(config.base, call.base_arguments, embeds, packing, valid, cache)
        )
    elif family.masks == "base":
        window = getattr(config.text.config, "sliding_window", None)
        new["attention_mask"] = gather_block_masks(arguments.get("attention_mask"), packing, past, valid, window)
    if config.reads_cache_position:
        new["cache_position"] = torch.arange(past.physical, valid.shape[1], device=valid.device)

    if not bool(packing_cpu.held.all()):
        refuse_windows_with_a_past(config, past, valid.shape[1])
    columns = torch.cat([past.columns, past.logical + packing.index], 1)
    call.layout = Layout(columns, valid, past.logical + length, shift, weakref.ref(config.base))
    call.shrunk = True
    call.outputs_follow(packing, length)
    if config.decoder is not None:
        call.decoder = begin_decoder_stage(config, past, selection)
    _log("prefill", new, past)
    return new


def begin_decoder_stage(config: PruningConfig, past: Past, selection: VisionSelection) -> DecoderCall | None:
    """What the upper layers need to know of a prefill; None where they hold what the lower ones do."""
    inputs, differs = selection.decoder_inputs, past.layout is not None and bool(past.layout.by_decoder_layer)
    if not differs and not any(inputs):
        return None
    device, (batch, length) = selection.embeds.device, selection.keep_mask.shape
    refuse_windows_with_a_past(config, past, past.physical + length)
    packing, packing_cpu = selection.packing, selection.packing_cpu
    if packing is None or packing_cpu is None:
        not_padding, prompt, valid = selection.not_padding, selection.prompt, to_device(selection.not_padding, device)
        columns = torch.arange(length, device=device).expand(batch, -1)
    else:
        not_padding, valid, columns = packing_cpu.valid, packing.valid, packing.index
        prompt = packing_cpu.take(selection.prompt) & not_padding
    return DecoderCall(
        past=[past.by_decoder_layer(layer, selection.mask) for layer in config.decoder_cuts],
        columns=past.logical + columns,
        valid=valid,
        columns_below_first_cut=torch.cat([past.columns, past.logical + columns], 1),
        padding_below_first_cut=torch.cat([past.mask(selection.mask), valid], 1),
        logical_length=past.logical + length,
        differs=differs,
        prefill=Prefill(inputs, selection.records, not_padding, prompt, selection.pruned_embeds),
    )


def continue_pruned_cache(
    config: PruningConfig, call: Continuing, layout: Layout, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of a call that prunes nothing, on a cache that was pruned before: a decode step, a turn of text."""
    cache = cache_among(arguments)
    tokens = tokens_among(arguments)
    batch, length = tokens.shape[:2]
    past = Past.of(cache, batch, tokens.device)
    new = dict(arguments)
    positions = callers_positions(arguments, past, length)
    if layout.shifted:
        positions = positions - past.shift[:, None]
    new["position_ids"] = positions
    mask, static = None, None if config.reads_cache_position else cache.static_columns
    if config.family.masks == "text":
        given = arguments.get("attention_mask")
        mask = padding_mask(given, cache, batch, length, whole=static is not None)
        if mask is not None or layout.padded:
            new["attention_mask"] = layout.mask(mask, past.after(length, static))
        elif isinstance(given, dict) or (given is not None and given.ndim == 4):
            new["attention_mask"] = None  # it was made for the columns that the caller counts
    if layout.by_decoder_layer and call.decoder is None:
        call.continuation = DecoderContinuation(layout, cache, mask, length, static)
    if config.reads_cache_position:
        new["cache_position"] = past.physical + torch.arange(length, device=tokens.device)
    _log("continuation", new, past)
    return new


def layout_after(config: PruningConfig, call: ForwardCall, cache: Any) -> Layout | None:
    """What the cache holds after a call of the text model; None where that has not changed."""
    layout, decoder = call.layout, call.decoder
    if decoder is None or not decoder.changed:
        return layout
    if layout is None:  # the layers below the decoder stage hold all of this call
        valid = decoder.padding_below_first_cut
        before = layout_of(cache)
        shift = torch.zeros(len(valid), dtype=torch.int64, device=valid.device) if before is None else before.shift
        columns, length = decoder.columns_below_first_cut, decoder.logical_length
        layout = Layout(columns, valid, length, shift, weakref.ref(config.base))
    layout.hold_above(dict(zip(config.decoder_cuts, decoder.layouts, strict=True)))
    return layout


def _log(what: str, new: dict[str, Any], past: Past) -> None:
    """How a call is fed; at level DEBUG, where it waits for the device."""
    if torch.compiler.is_compiling() or not logger.isEnabledFor(logging.DEBUG):
        return
    ids, length = new["position_ids"], tokens_among(new).shape[1]
    logger.debug(
        "%s: %d columns on a cache of %d logical and %d physical ones, position ids from %s to %s",
        what, length, past.logical, past.physical, ids[..., 0].tolist(), ids[..., -1].tolist(),
    )  # fmt: skip


# ------------------------------------------------------------ what cannot be followed


def refuse_checkpointing(config: PruningConfig) -> None:
    """Raise `ValueError` where gradient checkpointing runs layers again together with hooks.

    The second time no call is in flight, so that stages that act at layers would not act. Hooks on a layer run again
    before some transformers 5.x, and those inside a layer everywhere: a policy that restores may have some.
    """
    layers: list[Any] = [] if config.decoder is None else list(config.text.layers)
    of_encoder = [] if config.encoder is None else _encoder_layers(config)
    restoration = None if config.encoder is None else config.encoder.policy.restoration(len(of_encoder))
    inside = restoration is not None and restoration.stabilised > 0
    if inside and any(getattr(layer, "gradient_checkpointing", False) and layer.training for layer in of_encoder):
        assert config.encoder is not None
        raise ValueError(
            f"policy {config.encoder.policy.label!r} acts inside layers of the vision encoder, which gradient "
            "checkpointing runs twice; call model.gradient_checkpointing_disable(), or use a policy of the vision stage"
        )
    for layer in layers + of_encoder:
        if getattr(layer, "gradient_checkpointing", False) and type(layer).__call__ is not nn.Module.__call__:
            raise ValueError(
                f"gradient checkpointing under transformers {version('transformers')} runs layers twice with their "
                "hooks, which policies that act inside the decoder or the vision tower cannot follow; use a policy of "
                "the vision stage, or model.gradient_checkpointing_disable()"
            )


def _encoder_layers(config: PruningConfig) -> list[Any]:
    """The layers between which a policy of the encoder stage acts."""
    facts = config.family.encoder
    if facts is None:
        return []
    if facts.packed_tower is not None:
        return list(facts.packed_tower(config.base).get_submodule("blocks").children())
    if facts.pixtral is not None:
        return list(facts.pixtral(config.base)[0].get_submodule("transformer.layers").children())
    find = facts.raster_layers or facts.layers
    return [] if find is None else list(find(config.base))


def refuse_windows_with_a_past(config: PruningConfig, past: Past, total: int) -> None:
    """Raise `PrunedCacheError` for a picture in a later turn where a sliding window ends inside the talk.

    Windows count the columns that a cache holds, so the padding between turns of rows that lose different numbers of
    tokens would use them up.
    """
    text = config.text
    windows = [window for i in range(len(text.layers)) if (window := window_at(text.config, i)) is not None]
    if past.physical and windows and min(windows) < total:
        raise PrunedCacheError(
            "a picture in a later turn is not supported on sliding-window layers with pruning once the talk is longer "
            f"than the window of {min(windows)}, in a batch of rows or with a decoder-stage policy; start a fresh cache"
        )


def refuse_other_decoder_cuts(config: PruningConfig, layout: Layout | None) -> None:
    """Raise `PrunedCacheError` for a cache that was cut at decoder layers where this pruning has no hooks."""
    if layout is not None and layout.by_decoder_layer and tuple(layout.by_decoder_layer) != config.decoder_cuts:
        raise PrunedCacheError(
            "this KV cache was filled by a policy that dropped tokens at decoder layer "
            f"{' and '.join(map(str, layout.by_decoder_layer))}, and another is applied now; go on with a fresh cache, "
            "or apply that policy again"
        )
