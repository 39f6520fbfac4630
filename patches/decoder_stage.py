"""Decoder-stage pruning: visual tokens leave at a layer during prefill; the layers above hold less."""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

import torch
from torch import Tensor, nn

from ..device import to_device, to_host
from ..ops import attention_received
from ..policies.answers import checked_masks
from ..policies.types import DecoderView
from .attention_tap import AttentionTap
from .cache import cache_among
from .call import Calls, ForwardCall, guarded
from .config import PruningConfig
from .decoder_call import DecoderCall, DecoderContinuation, DecoderInput, Prefill
from .masks import layer_mask, window_at
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
        self._handles: list[Any] = []
        self._windowed: frozenset[int] = frozenset()  # layers with a sliding window

    def attach(self) -> None:
        layers = range(len(self.config.text.layers))
        # Read once: a config looks its attributes up slowly, and this is asked in every layer and step.
        self._windowed = frozenset(i for i in layers if window_at(self.config.text.config, i) is not None)
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
        if call is None:
            return None
        decoder = call.decoder
        if decoder is None:
            continued = call.continuation
            return None if continued is None else self._continue(continued, i, args, kwargs)
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
        config, valid = self.config.text.config, decoder.layouts[-1].valid
        kind = _kind(config, i)
        if kind not in decoder.masks:
            decoder.masks[kind] = layer_mask(config, i, hidden, valid, cache_among(kwargs))
        new["attention_mask"] = decoder.masks[kind]
        if kwargs.get("cache_position") is not None:
            new["cache_position"] = _last_columns(valid, hidden)
        if args:
            return (hidden, *args[1:]), new
        return args, {**new, "hidden_states": hidden}

    def _continue(
        self, continued: DecoderContinuation, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What a layer is given in a call that drops nothing: a mask of the columns that it holds."""
        follows = kwargs.get("cache_position") is not None
        if kwargs["attention_mask"] is None and continued.sees_all and not follows and i not in self._windowed:
            return None  # as at most decode steps
        config, hidden = self.config.text.config, args[0] if args else kwargs["hidden_states"]
        cut = max(cut for cut in self.cuts if cut <= i)
        key = cut, _kind(config, i)
        if key not in continued.masks:
            valid = continued.valid(cut, hidden.device)
            columns = _last_columns(valid, hidden) if follows else None
            continued.masks[key] = layer_mask(config, i, hidden, valid, continued.cache), columns
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
        started = time.perf_counter()
        views = [self._view(decoder, prefill, layer, hidden, row) for row in rows]
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
        prefill.add_time(asked, (time.perf_counter() - started) * 1e3)
        if bool(keep_mask.all()):
            return None
        packing = Packing.of(keep_mask, prefill.not_padding)
        prefill.drop(layer, keep_mask, packing)
        return packing

    def _view(self, decoder: DecoderCall, prefill: Prefill, layer: int, hidden: Tensor, row: int) -> DecoderView:
        """What the policy sees of a row."""
        assert prefill.heads is not None
        query, key, scaling = prefill.heads
        query, key = query[row : row + 1], key[row : row + 1]
        valid = decoder.padding[row].to(query.device)  # of the layer whose attention is read
        total, past = len(valid), len(valid) - decoder.valid.shape[1]
        key = key[:, :, :total]  # a static cache holds empty columns after them

        def received(rows: Tensor) -> Tensor:
            rows = to_device(rows, query.device)
            order = torch.arange(total, device=query.device)
            visible = valid & (order <= (rows + past)[:, None])
            return attention_received(query[:, :, rows], key, mask=visible[None], scaling=scaling)[0, past:]

        def embeds() -> Tensor:
            packing = decoder.packing
            fed = prefill.embeds[row] if packing is None else prefill.embeds[row, packing.index[row]]
            return fed.to(query.device)

        inputs, prompt = prefill.inputs[row], prefill.prompt[row]
        visual = torch.cat([each.columns for each in inputs])
        is_text = prompt.clone()
        is_text[visual] = False
        is_text[: int(visual.min())] = False
        return DecoderView(
            visual=[to_device(each.columns, query.device) for each in inputs],
            n_keep=[each.n_keep for each in inputs],
            text=to_device(is_text.nonzero()[:, 0], query.device),
            last=int(prompt.nonzero()[-1]),
            received=received,
            keys=key[0, :, past:].transpose(0, 1).flatten(1),
            hidden=lambda: self.config.text.norm(hidden[row]).to(query.device),
            embeds=embeds,
            layer=layer,
            n_layers=len(self.config.text.layers),
            lowest=self.config.first_decoder_cut,
            entered=[each.entered for each in inputs],
        )


def _kind(config: Any, layer: int) -> Any:
    """The kind of attention of a decoder layer; None where all are alike."""
    kinds = getattr(config, "layer_types", None)
    return None if kinds is None else kinds[layer]


def _last_columns(valid: Tensor, hidden: Tensor) -> Tensor:
    """(M,) int64 indices of this call's columns, among those of the (B, P + M) mask `valid`."""
    total = valid.shape[1]
    return torch.arange(total - hidden.shape[1], total, device=hidden.device)
