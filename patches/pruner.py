"""Pruning by hooks on one model instance."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import transformers
from torch import nn

from ..budget import AdaptiveBudget, Budget, PartBudget
from ..pickling import Unpicklable
from ..policies.base import Policy
from . import call as calls
from .attachment import Attachment
from .cache import CACHE_NAME, adopt, cache_among, layout_of
from .call import _CALL, ForwardCall
from .encoder_capture import EncoderListener
from .families.base import Family, Kind, UnsupportedModelError, base_of
from .feature_tap import Source, encoding
from .head import LogitsToKeep, bound, heads_of, labels_among
from .packing import Packing
from .past import Past
from .stages import deep_stage, tower_stage
from .text_inputs import (
    base_inputs_on_pruned_cache,
    begin_decoder_stage,
    check_decoder_layers,
    continue_pruned_cache,
    layout_after,
    prune_text_inputs,
    refuse_checkpointing,
    tokens_among,
)
from .vision_stage import Plan, Record
from .visual_inputs import Request

__all__ = ["_CALL", "Pruner", "Record"]

#: Whether torch.export is tracing; torch has a public name for it from 2.7 on.
_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


class Pruner(Unpicklable):
    """Pruning of one model: its policy, budget and hooks.

    Args:
        model: the model as the user holds it.
        family: its facts.
        acting: by stage (`"encoder"`, `"vision"`, `"decoder"`), who chooses tokens there, and its budget.
        positions: `"original"` or `"compact"`.

    Raises:
        ValueError: if a stage does not fit the model.
        UnsupportedModelError: if the model's head or text model cannot follow.
    """

    what = "a pruned model"

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        acting: Mapping[str, tuple[Policy, Budget | PartBudget | AdaptiveBudget]],
        positions: Literal["original", "compact"],
    ):
        self.base = base_of(model)
        self.heads = heads_of(model)
        self.text: Any = self.base.get_submodule(family.text_model)
        self.family, self.positions = family, positions
        self.policy: Policy | None = None
        self.budget: Budget | PartBudget | AdaptiveBudget = AdaptiveBudget()
        if "vision" in acting:
            self.policy, self.budget = acting["vision"]
        policy, deep = self.policy, acting.get("decoder")
        self.budgets = [budget for _, budget in acting.values()]
        self.records: list[Record] = []
        #: Length of the last sequence that the text model was to be fed, and what was left of it; None: all.
        self.last: tuple[int, Packing | None] = (0, None)
        self.in_flight: dict[int, ForwardCall] = {}
        self.closed = self.warned = False
        # Until some release 5.x, masks are built from this index of physical columns, which the text
        # model would otherwise derive from the logical length.
        accepted = inspect.signature(self.text.forward).parameters
        self.reads_cache_position = "cache_position" in accepted
        self.base_arguments = frozenset(inspect.signature(self.base.forward).parameters)
        if CACHE_NAME not in accepted:  # rather than overlook a cache under yet another name
            raise UnsupportedModelError(
                f"{type(self.text).__name__} takes no argument {CACHE_NAME!r}, through which transformers "
                f"{transformers.__version__} hands on the KV cache; install a version that tokenprune was tested with"
            )
        spec = None if policy is None else policy.encoder()
        self.encoder = EncoderListener(self.base, family.encoder, spec) if spec and family.encoder else None
        self.tower = None if "encoder" not in acting else tower_stage(self.base, family, *acting["encoder"])
        self.deep_budget: Any = None if deep is None else deep[1]
        self.deep = None if deep is None else deep_stage(self, deep[0])
        self._attachment = Attachment(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pruner:
        """The pruner of a copied model, which has no call in flight."""
        new = object.__new__(type(self))
        memo[id(self)] = new
        own = {name: value for name, value in vars(self).items() if name != "in_flight"}
        vars(new).update(copy.deepcopy(own, memo), in_flight={})
        return new

    # ------------------------------------------------------------ hooks on the instance

    def attach(self) -> None:
        """Hang the hooks on the instance: all, or none where one fails."""
        self.closed = False
        self._attachment.attach()

    def detach(self) -> None:
        """Take everything off again.

        Raises:
            RuntimeError: while a call runs, in this thread or in another.
        """
        self.closed = True
        if any(call.running for call in list(self.in_flight.values())):
            self.closed = False
            raise RuntimeError(
                "pruning cannot be applied, replaced or removed while the model runs, in this thread or in another; "
                "wait for the call to end"
            )
        calls.forget(self)
        self._attachment.detach()

    def _depth(self, module: nn.Module) -> int:
        """Where a module stands among those that a call passes, from the outside in.

        Raises:
            RuntimeError: for a replica of it, which shares its hooks.
        """
        if module is self.text:
            return len(self.heads) + 1
        if module is self.base:
            return len(self.heads)
        for depth, head in enumerate(self.heads):
            if module is head:
                return depth
        raise RuntimeError(
            "this is a replica of a pruned model, as nn.DataParallel makes them, and hooks do not follow to replicas; "
            "use DistributedDataParallel or device_map, or prune a deep copy for each device"
        )

    @property
    def keeps_all(self) -> bool:
        """Whether nothing can leave, whatever comes."""
        return all(budget.keeps_all for budget in self.budgets)

    def sources(self, encoded: Mapping[Any, Any]) -> list[Source]:
        """Where features that `generate` has computed came from, as far as that was noted."""
        taps = self._attachment.taps
        found = [
            taps[kind].source_of(output) for kind, output in encoded.items() if kind in taps and output is not None
        ]
        return [source for source in found if source is not None]

    def call(self) -> ForwardCall | None:
        return calls.current(self)

    # ------------------------------------------------------------ the head: labels, places of logits

    def enter_head(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        wanted = kwargs.get("logits_to_keep", 0)
        plain = not args and kwargs.get("labels") is None and isinstance(wanted, int) and wanted <= 1
        if plain and calls.current(self) is None:
            return None
        depth = self._depth(module)
        args, arguments = bound(module, args, kwargs)
        labels, kept = labels_among(arguments), LogitsToKeep.of(arguments)
        if labels is None and kept is None and calls.current(self) is None:
            return None
        call = calls.enter(self, depth, sys._getframe(1))  # it ends with the base model
        changed = {}
        if labels is not None:
            # The loss is computed far from here against this very tensor, which can shrink in place.
            changed["labels"] = call.labels = labels.clone()
        if kept is not None:
            call.logits_to_keep, changed["logits_to_keep"] = kept, kept.places
        return args, {**arguments, **changed}

    # ------------------------------------------------------------ the base model: what is visual

    def enter_base(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if _exporting():
            raise RuntimeError(
                "torch.export cannot follow pruning, whose selection depends on the data; "
                "call remove_pruning(model) first and export the stock model"
            )
        _, arguments = bound(module, args, kwargs)
        request = Request.of(self.base, self.family, arguments, self._attachment.taps)
        if request is None and self.family.masks == "text" and calls.current(self) is None:
            return None  # as at every decode step
        call = calls.enter(self, self._depth(module), sys._getframe(1))
        call.request = request
        if self.family.masks == "text":
            return None
        call.mask = arguments.get("attention_mask")
        cache = cache_among(arguments)
        return None if layout_of(cache) is None else ((), base_inputs_on_pruned_cache(self, arguments, cache))

    def leave_base(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        calls.leave(self, len(self.heads))

    def saw_features(self, kind: Kind, output: Any, source: Source) -> None:
        call = self.call()
        if call is not None and call.request is not None:
            call.request.saw(kind, output, source)

    # ------------------------------------------------------------ the text model: pruning

    def enter_text(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        args, kwargs = bound(module, args, kwargs)
        cache = cache_among(kwargs)
        layout, length = layout_of(cache), tokens_among(kwargs).shape[1]
        if layout is None and calls.current(self) is None:
            self.last = length, None
            return (args, kwargs)  # the stock model's own call
        # Inside the encoder it is not the base model that calls.
        begin = calls.begin if encoding(self.base) else calls.enter
        call = begin(self, self._depth(module), sys._getframe(1))
        check_decoder_layers(self, layout)
        call.length = length
        if layout is not None:
            call.reads(cache)
        if self.text.training:
            refuse_checkpointing(self)
        if "flash" in (self.text.config._attn_implementation or ""):
            self._attachment.hook_layers()
        embeds = kwargs.get("inputs_embeds")
        if call.request is not None and embeds is not None:
            asked = kwargs if self.family.masks == "text" else {**kwargs, "attention_mask": call.mask}
            call.request.check(embeds)
            plan = Plan(self, call.request, embeds, asked)
            self.records = plan.records
            if plan.packing is not None:
                return args, prune_text_inputs(self, call, plan, plan.packing, kwargs)
            if self.deep is not None:
                past = Past.of(cache, len(plan.stays), embeds.device)
                call.deep = begin_decoder_stage(self, cache, past, plan)
        if layout is not None:
            call.shrunk = True
            return args, continue_pruned_cache(self, call, layout, kwargs)
        return args, kwargs

    def leave_text(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        call = calls.leave(self, len(self.heads) + 1)
        if call is None or output is None:  # the call failed
            return
        self.last = call.length, call.packing
        cache = getattr(output, CACHE_NAME, None)
        if cache is not None:
            layout = layout_after(self, call, cache)
            if layout is not None:
                adopt(cache, layout)

    def enter_layer(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        # FlashAttention takes gaps in position ids for borders between packed sequences. Rotary
        # embeddings are computed above the layers, so nothing else down here reads them.
        if kwargs.get("position_ids") is None or "flash" not in (self.text.config._attn_implementation or ""):
            return None  # first of all: a compiler can follow this, and no further
        call = self.call()
        if call is None or not call.shrunk:
            return None
        return args, {**kwargs, "position_ids": None}
