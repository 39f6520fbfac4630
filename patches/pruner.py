"""Pruning of one model: what its hooks do, in the order in which a call meets them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import torch
from torch import nn

from ..budget import TokenBudget
from ..pickling import Unpicklable
from ..policies.base import Policy
from .attachment import Attachment, Hooks
from .cache import adopt, cache_among, layout_of
from .call import Calls, calling_frame
from .compiled_step import begin_step, end_step, is_traced, step_on
from .config import Positions, PruningConfig
from .decoder_stage import DecoderStage
from .encoder_capture import EncoderCapture
from .encoder_parts import EncoderParts, encoder_stages
from .families.base import Family, Kind
from .feature_source import FeatureSource
from .feature_tap import encoding
from .head import LogitsToKeep, keep_columns, labels_among
from .history import marked_layout, shrink_earlier_pictures
from .kept_history import History
from .modules import arguments_by_name
from .packing import Packing
from .past import Past
from .report import Record
from .text_inputs import (
    base_inputs_on_pruned_cache,
    begin_decoder_stage,
    continue_pruned_cache,
    layout_after,
    loss_is_outside,
    prune_text_inputs,
    refuse_checkpointing,
    refuse_other_decoder_cuts,
    tokens_among,
)
from .vision_stage import select_tokens
from .visual_inputs import VisualInputs

__all__ = ["Pruner", "Record"]

logger = logging.getLogger(__name__)

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

#: Whether torch.export is tracing; torch has a public name for it from 2.7 on.
_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


class Pruner(Unpicklable):
    """Pruning of one model.

    Args:
        model: the model as the user holds it.
        family: the facts about its type.
        acting: by stage (`"pixels"`, `"encoder"`, `"vision"`, `"decoder"`), who chooses tokens there, and its budget.
        positions: `"original"` or `"compact"`.
        history: what becomes of pictures of earlier turns.

    Attributes:
        config: what is applied.
        calls: of this model.
        since: when it was made, local time.
        records: the report of the last prefill.
        last: length of the last sequence that the text model was to be fed, and which columns were left of it; None:
            all.

    Raises:
        ValueError: if a stage does not fit the model.
        UnsupportedModelError: if the model's head or text model cannot follow.
    """

    what = "a pruned model"

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        acting: Mapping[str, tuple[Policy, TokenBudget]],
        positions: Positions,
        history: History | None = None,
    ):
        config = PruningConfig.of(model, family, acting, positions, history)
        self.config = config
        self.calls = Calls(config.heads, config.base)
        self.since = datetime.now().astimezone()
        self.records: list[Record] = []
        self.last: tuple[int, Packing | None] = (0, None)
        self._warned_of_loss = False
        spec = None if config.vision is None else config.vision.policy.encoder_spec()
        self.capture = EncoderCapture(config.base, family.encoder, spec) if spec and family.encoder else None
        self.pixels, self.encoder = encoder_stages(config)
        self.decoder = None if config.decoder is None else DecoderStage(config, self.calls)
        hooks = Hooks(
            self.enter_head,
            self.enter_base,
            self.leave_base,
            self.enter_text,
            self.leave_text,
            self.enter_layer,
            self.record_features,
        )
        parts = EncoderParts(self.capture, self.pixels, self.encoder)
        self._attachment = Attachment(config, self, hooks, parts, self.decoder)

    # ------------------------------------------------------------ hooks on the instance

    def attach(self) -> None:
        """Hang the hooks on the instance: all, or none where one fails."""
        self.calls.closed = False
        self._attachment.attach()

    def detach(self) -> None:
        """Take everything off again.

        Raises:
            RuntimeError: while a call runs, in this thread or in another.
        """
        self.calls.closed = True
        if self.calls.any_running:
            self.calls.closed = False
            raise RuntimeError(
                "pruning cannot be applied, replaced or removed while the model runs, in this thread or in another; "
                "wait for the call to end"
            )
        self.calls.forget()
        self._attachment.detach()

    def _depth(self, module: nn.Module, first: int = 0) -> int:
        """Where a module is among those that a call passes, from the outside in.

        Args:
            module: that is entered.
            first: depth from which on it is looked for: a head may be the base model as well.

        Raises:
            RuntimeError: for a replica of it, which shares its hooks.
        """
        config = self.config
        for depth, known in enumerate((*config.heads, config.base, config.text)):
            if module is known and depth >= first:
                return depth
        raise RuntimeError(
            "this is a replica of a pruned model, as nn.DataParallel makes them, and hooks do not follow to replicas; "
            "use DistributedDataParallel or device_map, or prune a deep copy for each device"
        )

    # ------------------------------------------------------------ the head: labels, columns of logits

    def enter_head(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Before a head: put copies of the labels and of `logits_to_keep` in place, which can shrink later."""
        wanted = kwargs.get("logits_to_keep", 0)
        plain = not args and kwargs.get("labels") is None and isinstance(wanted, int) and wanted <= 1
        if plain and self.calls.current() is None:
            return None
        depth = self._depth(module)
        args, arguments = arguments_by_name(module, args, kwargs)
        labels, kept = labels_among(arguments), LogitsToKeep.of(arguments)
        if labels is None and kept is None and self.calls.current() is None:
            return None
        call = self.calls.enter(depth, calling_frame())  # it ends with the base model
        changed = {}
        if labels is not None:
            # The head computes its loss with this very tensor, later; it is shrunk in place.
            changed["labels"] = call.labels = labels.clone()
        if kept is not None:
            call.logits_to_keep, changed["logits_to_keep"] = kept, kept.columns
        return args, {**arguments, **changed}

    # ------------------------------------------------------------ the base model: what is visual

    def enter_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Before the base model: find placeholders; on a pruned cache, what it builds masks from."""
        if _exporting():
            raise RuntimeError(
                "torch.export cannot follow pruning, whose selection depends on the data; "
                "call remove_pruning(model) first and export the stock model"
            )
        config, (_, arguments) = self.config, arguments_by_name(module, args, kwargs)
        if config.history is not None and (cache := cache_among(arguments)) is not None:
            shrink_earlier_pictures(config, cache, tokens_among(arguments).shape[1])
        visual = VisualInputs.of(config.base, config.family, arguments, self._attachment.source_of)
        if visual is None and config.family.masks == "text" and self.calls.current() is None:
            return None  # as at every decode step
        if visual is None and is_traced(self.calls):
            cache = cache_among(arguments)
            return None if layout_of(cache) is None else ((), base_inputs_on_pruned_cache(config, arguments, cache))
        call = self.calls.enter(self._depth(module, len(config.heads)), calling_frame())
        call.visual = visual
        if config.family.masks == "text":
            return None
        call.base_arguments = arguments
        cache = cache_among(arguments)
        return None if layout_of(cache) is None else ((), base_inputs_on_pruned_cache(config, arguments, cache))

    def leave_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After the base model, or an error in it: the call is over."""
        call = self.calls.leave(len(self.config.heads))
        if call is not None and call.packing is not None and self.config.family.head_compares_lengths:
            keep_columns(output, kwargs.get("logits_to_keep", 0))

    def record_features(self, kind: Kind, output: Any, source: FeatureSource) -> None:
        """When features have been computed: note them for the call that uses them."""
        call = self.calls.current()
        if call is not None and call.visual is not None:
            call.visual.record_features(kind, output, source)

    # ------------------------------------------------------------ the text model: pruning

    def enter_text(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Before the text model: prune what is visual, or go on with a cache that was pruned."""
        config = self.config
        args, kwargs = arguments_by_name(module, args, kwargs)
        cache = cache_among(kwargs)
        layout, length = layout_of(cache), tokens_among(kwargs).shape[1]
        if layout is None and self.calls.current() is None:
            self.last = length, None
            return (args, kwargs)  # the stock model's own call
        if layout is not None and is_traced(self.calls):
            refuse_other_decoder_cuts(config, layout)
            self.last = length, None
            return args, begin_step(config, cache, kwargs)
        # A text model that is called while features are computed begins a call of its own.
        begin = self.calls.begin if encoding(config.base) else self.calls.enter
        call = begin(self._depth(module), calling_frame())
        refuse_other_decoder_cuts(config, layout)
        call.length = length
        if layout is not None:
            call.reads(cache)
        if config.text.training:
            refuse_checkpointing(config)
        if config.uses_flash_attention:
            self._attachment.hook_layers()
        embeds = kwargs.get("inputs_embeds")
        if call.visual is not None and embeds is not None:
            given = (
                kwargs
                if config.family.masks == "text"
                else {**kwargs, "attention_mask": call.base_arguments.get("attention_mask")}
            )
            call.visual.check(embeds)
            selection = select_tokens(config, call.visual, embeds, given)
            self.records = selection.records
            if selection.packing is not None:
                kwargs = prune_text_inputs(config, call, selection, kwargs)
            if config.history is not None:
                call.layout = marked_layout(config, call.visual, cache, selection, call.layout)
            if selection.packing is not None:
                if loss_is_outside(config, call):
                    self._warn_of_loss()
                return args, kwargs
            if config.decoder is not None:
                past = Past.of(cache, len(selection.keep_mask), embeds.device)
                call.decoder = begin_decoder_stage(config, past, selection)
        if layout is not None:
            call.shrunk = True
            return args, continue_pruned_cache(config, call, layout, kwargs)
        return args, kwargs

    def leave_text(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After the text model: the cache gets its layout."""
        call = self.calls.leave(len(self.config.heads) + 1)
        if call is None:
            end_step(cache_among(kwargs))
        if call is None or output is None:  # the call failed
            return
        self.last = call.length, call.packing
        cache = getattr(output, self.config.cache_name, None)
        if cache is not None:
            layout = layout_after(self.config, call, cache)
            if layout is not None:
                adopt(cache, layout)

    def enter_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Before a decoder layer under FlashAttention, which takes gaps in position ids for borders between samples.

        Rotary embeddings are computed above the layers, so nothing else down here reads position ids.
        """
        if kwargs.get("position_ids") is None or not self.config.uses_flash_attention:
            return None  # comes first: a compiler follows the hook up to here without a graph break
        call = self.calls.current() or step_on(cache_among(kwargs))
        if call is None or not call.shrunk:
            return None
        return args, {**kwargs, "position_ids": None}

    def _warn_of_loss(self) -> None:
        if not self._warned_of_loss:
            self._warned_of_loss = True
            logger.warning(
                "logits of a pruned forward are as long as the pruned sequence: for a loss that is computed outside "
                "the model, shrink its labels with tokenprune.prune_labels(model, labels)"
            )
