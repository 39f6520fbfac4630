"""Decoder-stage pruning: visual tokens leave at a layer during prefill; the layers above hold less."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor, nn

from ..device import to_host
from ..policies.answers import checked_masks
from ..stopwatch import Stopwatch
from .attention_tap import AttentionTap
from .cache import cache_among
from .call import Calls, ForwardCall, guarded
from .compiled_step import CompiledStep, step_on
from .config import PruningConfig
from .decoder_call import DecoderCall, DecoderContinuation, DecoderInput, Prefill
from .decoder_view import Readings
from .masks import LayerMasks, window_at
from .packing import Packing

logger = logging.getLogger(__name__)


class DecoderStage:
    """Hooks on the decoder layers from the first cut on, and a tap on the attention below each cut.

    Args:
        config: of the pruning; something acts at the decoder stage.
        calls: of the model.
    """

    def __init__(self, config: PruningConfig, calls: Calls):
        assert config.decoder is not None
        self.policy = config.decoder.policy
        self.config, self.calls, self.cuts = config, calls, config.decoder_cuts
        self._taps = [AttentionTap(config.text.layers[i - 1].self_attn, self._read) for i in self.cuts]
        self._masks = LayerMasks(config.text.config)
        self._handles: list[Any] = []
        # By layer: its kind of attention, and whether it has a sliding window.
        self._kinds: list[Any] = []
        self._windowed: list[bool] = []

    def attach(self) -> None:
        config, n_layers = self.config.text.config, len(self.config.text.layers)
        # Read once: a config looks its attributes up slowly, and this is asked in every layer and step.
        self._kinds = list(getattr(config, "layer_types", None) or [None] * n_layers)
        self._windowed = [window_at(config, i) is not None for i in range(n_layers)]
        for tap in self._taps:
            tap.attach()
        for i, layer in enumerate(self.config.text.layers):
            if i >= self.cuts[0]:
                enter = functools.partial(self._enter_layer, i)
                self._handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))

    def detach(self) -> None:
        for tap in self._taps:
            tap.detach()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _read(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> None:
        call = self.calls.current()
        if call is not None and call.decoder is not None:
            call.decoder.prefill.heads = (query, key, kwargs.get("scaling"))

    def _enter_layer(
        self, i: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        call = self.calls.current()
        if call is None or call.decoder is None:
            running: ForwardCall | CompiledStep | None = step_on(cache_among(kwargs)) if call is None else call
            continued = None if running is None else running.continuation
            return None if continued is None else self._continue(continued, i, args, kwargs)
        decoder = call.decoder
        hidden = args[0] if args else kwargs["hidden_states"]
        if i in self.cuts:
            hidden = self._enter_cut(call, decoder, i, hidden)
        if not decoder.changed:
            return None
        call.shrunk = True  # no position ids for FlashAttention
        new = dict(kwargs)
        if decoder.packing is not None:
            new["position_embeddings"] = decoder.rotary(kwargs["position_embeddings"])
            new["position_ids"] = None
            for name in self.config.family.layer_arguments:
                if new.get(name) is not None:
                    new[name] = decoder.packing.take(new[name])
        follows = kwargs.get("cache_position") is not None
        # Without padding and without a past the kernel needs no mask, here as below.
        if kwargs["attention_mask"] is not None or follows or self._windowed[i] or not decoder.sees_all:
            valid, kind = decoder.layouts[-1].valid, self._kinds[i]
            if kind not in decoder.masks:
                decoder.masks[kind] = self._masks.of(i, hidden, valid, cache_among(kwargs))
            new["attention_mask"] = decoder.masks[kind]
            if follows:
                new["cache_position"] = _last_columns(valid, hidden)
        if args:
            return (hidden, *args[1:]), new
        return args, {**new, "hidden_states": hidden}

    def _continue(
        self, continued: DecoderContinuation, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What a layer is given in a call that drops nothing: a mask of the columns that it holds."""
        follows = kwargs.get("cache_position") is not None
        if kwargs["attention_mask"] is None and continued.sees_all and not follows and not self._windowed[i]:
            return None  # as at most decode steps
        hidden = args[0] if args else kwargs["hidden_states"]
        cut = max(cut for cut in self.cuts if cut <= i)
        key = cut, self._kinds[i]
        if key not in continued.masks:
            valid = continued.valid(cut, hidden.device)
            columns = _last_columns(valid, hidden) if follows else None
            continued.masks[key] = (
                self._masks.of(i, hidden, valid, continued.cache),
                columns,
            )
        mask, columns = continued.masks[key]
        new = {**kwargs, "attention_mask": mask}
        if follows:
            new["cache_position"] = columns
        return args, new

    def _enter_cut(self, call: ForwardCall, decoder: DecoderCall, layer: int, hidden: Tensor) -> Tensor:
        """At the layer of a cut, drop what the policy drops; the hidden states that are left."""
        length = hidden.shape[1]
        packing = self._choose(decoder, decoder.prefill, layer, hidden)
        if packing is not None:
            left = decoder.shrink(packing)
            hidden = left.take(hidden)
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("decoder cut at layer %d: %d of %d columns are left", layer, hidden.shape[1], length)
        decoder.begin_stretch()
        if packing is not None:
            call.outputs_follow(left, length)
        return hidden

    def _choose(self, decoder: DecoderCall, prefill: Prefill, layer: int, hidden: Tensor) -> Packing | None:
        """Which columns stay, on the host; None: all."""
        rows = [row for row, inputs in enumerate(prefill.inputs) if inputs]
        if not rows:
            return None
        watch = Stopwatch(hidden.device)
        views = Readings(self.config, decoder, layer, hidden).views()
        with guarded():
            answers = self.policy.decoder_select_many(views)
        inputs: list[tuple[int, DecoderInput]] = []
        masks: list[Tensor] = []
        for row, chosen in zip(rows, checked_masks(self.policy.label, views, answers), strict=True):
            for each, mask in zip(prefill.inputs[row], chosen or (), strict=chosen is not None):
                inputs.append((row, each))
                masks.append(mask)
        prefill.heads = None
        keep_mask = torch.ones_like(prefill.not_padding)
        for (row, each), mask in zip(inputs, to_host(masks), strict=True):
            keep_mask[row, each.columns] = mask
        # The masks have been fetched from the device, so that it has been waited for.
        asked = [each for row in rows for each in prefill.inputs[row]]
        prefill.add_time(asked, watch.ms())
        if bool(keep_mask.all()):
            return None
        packing = Packing.of(keep_mask, prefill.not_padding)
        prefill.drop(layer, keep_mask, packing)
        return packing


def _last_columns(valid: Tensor, hidden: Tensor) -> Tensor:
    """(M,) int64 indices of this call's columns, among those of the (B, P + M) mask `valid`."""
    total = valid.shape[1]
    return torch.arange(total - hidden.shape[1], total, device=hidden.device)
