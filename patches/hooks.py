"""Pruning by hooks on one model instance."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from ..budget import AdaptiveBudget, Budget, PartBudget
from ..cache import CACHE_NAME, STATE_ATTRIBUTE, Layout, PrunedCacheError, adopt, cache_among, layout_of
from ..places import to_device
from ..policies.base import Policy
from ..sequence import Packing
from .base import Family, Kind, UnsupportedModelError, base_of
from .blocks import shortened
from .deep import Deep
from .encoder import EncoderListener
from .masks import padding_mask
from .past import Past
from .plan import Plan, Record
from .positions import callers_positions, renumbered
from .request import FeatureTap, Request, Source
from .stages import deep_stage, tower_stage


@dataclass
class _Call:
    """State of one forward call in flight, in this thread alone."""

    pruner: Pruner
    labels: Tensor | None = None
    request: Request | None = None
    layout: Layout | None = None  # what the cache holds once the text model has run
    mask: Any = None  # the caller's, where the base model replaces it by masks of its own
    shrunk: bool = False  # this call's sequence differs from what the caller passed
    deep: Deep | None = None  # the upper layers' side of it, where a decoder stage is at work

    def labels_follow(self, packing: Packing) -> None:
        """Shrink the labels of this call with its sequence."""
        if self.labels is None:
            return
        labels = packing.take(self.labels)
        # Padding has no target; nor has a row's first token, which padding would have to predict.
        first = packing.valid & (packing.valid.cumsum(1) == 1)
        self.labels.data = labels.masked_fill(~packing.valid | first, -100)


#: Whether torch.export is tracing; torch has a public name for it from 2.7 on.
_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)

_CALL: ContextVar[_Call | None] = ContextVar("tokenprune_call", default=None)


class Pruner:
    """Pruning of one model: its policy, budget and hooks.

    Args:
        model: the model as the user holds it.
        family: its facts.
        acting: by stage (`"encoder"`, `"vision"`, `"decoder"`), who chooses tokens there, and its budget.
        positions: `"original"` or `"compact"`.

    Raises:
        ValueError: if a stage does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        acting: Mapping[str, tuple[Policy, Budget | PartBudget | AdaptiveBudget]],
        positions: Literal["original", "compact"],
    ):
        self.top, self.base = model, base_of(model)
        self.text: Any = self.base.get_submodule(family.text_model)
        self.family, self.positions = family, positions
        self.policy: Policy | None = None
        self.budget: Budget | PartBudget | AdaptiveBudget = AdaptiveBudget()
        if "vision" in acting:
            self.policy, self.budget = acting["vision"]
        policy, deep = self.policy, acting.get("decoder")
        self.records: list[Record] = []
        # Until some release 5.x, masks are built from this index of physical columns, which the text
        # model would otherwise derive from the logical length.
        accepted = inspect.signature(self.text.forward).parameters
        self._reads_cache_position = "cache_position" in accepted
        if CACHE_NAME not in accepted:  # rather than overlook a cache under yet another name
            raise UnsupportedModelError(
                f"{type(self.text).__name__} takes no argument {CACHE_NAME!r}, through which transformers "
                f"{transformers.__version__} hands on the KV cache; install a version that tokenprune was tested with"
            )
        spec = None if policy is None else policy.encoder()
        self._encoder = EncoderListener(self.base, family.encoder, spec) if spec and family.encoder else None
        self.tower = None if "encoder" not in acting else tower_stage(self.base, family, *acting["encoder"])
        self.deep_budget: Any = None if deep is None else deep[1]
        self._deep = None if deep is None else deep_stage(self, deep[0])
        self._handles: list[Any] = []
        self._taps: dict[Kind, FeatureTap] = {}
        self._wrapped: set[str] = set()

    @property
    def _deep_layers(self) -> list[int]:
        return [] if self._deep is None else self._deep.layers

    def attach(self) -> None:
        """Hang the hooks on the instance."""
        if self.top is not self.base:
            self._hook(self.top, self._enter_top, self._leave_top)
        self._hook(self.base, self._enter_base, self._leave_base)
        self._hook(self.text, self._enter_text, self._leave_text)
        for layer in self.text.layers:
            self._handles.append(layer.register_forward_pre_hook(self._enter_layer, with_kwargs=True))
        if self._encoder is not None:
            self._encoder.attach()
        if self.tower is not None:
            self.tower.attach()
        if self._deep is not None:
            self._deep.attach()
        for kind in self.family.kinds:
            name = f"get_{kind}_features"
            if name in vars(self.base):  # somebody else's wrapper: ours goes around it, and leaves it there
                self._wrapped.add(name)
            lengths = functools.partial(self.family.lengths, self.base.config)
            self._taps[kind] = FeatureTap(
                kind, getattr(self.base, name), self._saw_features, lengths, self._encoder, self.tower
            )
            setattr(self.base, name, self._taps[kind])
        setattr(self.base, STATE_ATTRIBUTE, self)

    def detach(self) -> None:
        """Take everything off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._encoder is not None:
            self._encoder.detach()
        if self.tower is not None:
            self.tower.detach()
        if self._deep is not None:
            self._deep.detach()
        for kind, tap in self._taps.items():
            name = f"get_{kind}_features"
            if vars(self.base).get(name) is tap:
                delattr(self.base, name)
                if name in self._wrapped:
                    setattr(self.base, name, tap.original)
        self._taps.clear()
        self._wrapped.clear()
        delattr(self.base, STATE_ATTRIBUTE)

    def _hook(self, module: nn.Module, enter: Callable[..., Any], leave: Callable[..., Any]) -> None:
        self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        # always_call: an exception below must leave no state behind
        self._handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))

    # ------------------------------------------------------------ the top model: labels

    def _enter_top(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        labels = kwargs.get("labels")
        if labels is None:
            return None
        # The loss is computed far from here against this very tensor, which can shrink in place.
        labels = labels.clone()
        _CALL.set(_Call(self, labels=labels))
        return args, {**kwargs, "labels": labels}

    def _leave_top(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        _CALL.set(None)

    # ------------------------------------------------------------ the base model: what is visual

    def _enter_base(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if _exporting():
            raise RuntimeError(
                "torch.export cannot follow pruning, whose selection depends on the data; "
                "call remove_pruning(model) first and export the stock model"
            )
        call = kwargs
        if args:
            call = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        state = self.call() or _Call(self)
        state.request = Request.of(self.base, self.family, call, self._taps)
        _CALL.set(state)
        if self.family.masks == "text":
            return None
        state.mask = call.get("attention_mask")
        cache = cache_among(call)
        if isinstance(state.mask, dict) or (state.mask is not None and state.mask.ndim != 2):
            raise ValueError(
                f"pruning cannot follow ready-made attention masks on model type {self.base.config.model_type!r}; "
                "use the default (dynamic) cache, with which the model builds its own"
            )
        return None if layout_of(cache) is None else ((), self._physical(dict(call), cache))

    def _physical(self, call: dict[str, Any], cache: Any) -> dict[str, Any]:
        """Arguments of a base model that builds masks, on a cache that was pruned before: it is to build them
        for the columns that are there, and to leave positions as they would have been."""
        tokens = call.get("input_ids")
        tokens = call["inputs_embeds"] if tokens is None else tokens
        batch, length = tokens.shape[:2]
        past = Past.of(cache, batch, tokens.device)
        layout = layout_of(cache)
        assert layout is not None
        if call.get("position_ids") is None:
            call["position_ids"] = callers_positions({}, past, length) + self.family.first_position
        mask = padding_mask(call.get("attention_mask"), cache, batch, length)
        if mask is not None or layout.padded:
            call["attention_mask"] = layout.mask(mask, past.physical + length)
        if "cache_position" in inspect.signature(self.base.forward).parameters:
            call["cache_position"] = past.physical + torch.arange(length, device=tokens.device)
        return call

    def _leave_base(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        _CALL.set(None)

    def _saw_features(self, kind: Kind, output: Any, source: Source) -> None:
        state = self.call()
        if state is not None and state.request is not None:
            state.request.saw(kind, output, source)

    def call(self) -> _Call | None:
        state = _CALL.get()
        return state if state is not None and state.pruner is self else None

    # ------------------------------------------------------------ the text model: pruning

    def _enter_text(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        state = self.call() or _Call(self)
        _CALL.set(state)
        layout = layout_of(cache_among(kwargs))
        if layout is not None and layout.upper and list(layout.upper) != self._deep_layers:
            raise PrunedCacheError(
                "this KV cache was filled by a policy that dropped tokens at decoder layer "
                f"{' and '.join(map(str, layout.upper))}, and another is applied now; go on with a fresh cache, "
                "or apply that policy again"
            )
        embeds = kwargs.get("inputs_embeds")
        if state.request is not None and embeds is not None:
            asked = kwargs if self.family.masks == "text" else {**kwargs, "attention_mask": state.mask}
            plan = Plan(self, state.request, embeds, asked)
            self.records = plan.records
            if plan.packing is not None:
                return args, self._shrink(state, plan, plan.packing, kwargs)
            if self._deep is not None:
                cache = cache_among(kwargs)
                past = Past.of(cache, len(plan.stays), embeds.device)
                state.deep = self._deep_call(cache, past, plan)
        if layout is not None:
            state.shrunk = True
            return args, self._follow(state, layout, kwargs)
        return None

    def _leave_text(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        state = self.call()
        if state is None:
            return
        layout, deep = state.layout, state.deep
        state.layout, state.deep, state.shrunk = None, None, False
        cache = getattr(output, CACHE_NAME, None)
        if cache is None:  # no cache is kept, or the call failed
            return
        if deep is not None and deep.visual is not None and deep.changed:
            layout = layout or self._plain_layout(cache, deep)
            layout.upper = dict(zip(self._deep_layers, deep.held, strict=True))
        if layout is not None:
            adopt(cache, layout)

    def _plain_layout(self, cache: Any, deep: Deep) -> Layout:
        """Layout of lower layers from which this call has pruned nothing."""
        before = layout_of(cache)
        if before is not None:
            return before
        batch, length = deep.below.shape
        columns = torch.arange(length, device=deep.below.device).expand(batch, -1)
        return Layout(columns, deep.below, length, torch.zeros_like(columns[:, 0]), weakref.ref(self.base))

    def _enter_layer(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        # FlashAttention takes gaps in position ids for borders between packed sequences. Rotary
        # embeddings are computed above the layers, so nothing else down here reads them.
        if kwargs.get("position_ids") is None or "flash" not in (self.text.config._attn_implementation or ""):
            return None  # first of all: a compiler can follow this, and no further
        state = self.call()
        if state is None or not state.shrunk:
            return None
        return args, {**kwargs, "position_ids": None}

    def _shrink(self, state: _Call, plan: Plan, packing: Packing, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the text model without the columns that go."""
        cache = cache_among(kwargs)
        device, (batch, length) = plan.embeds.device, plan.stays.shape
        past = Past.of(cache, batch, device)
        keep = to_device(plan.stays & plan.real, device)
        new = {**kwargs, **self.family.extras(kwargs, keep, packing)}
        new["inputs_embeds"] = plan.fed
        positions, shift = callers_positions(kwargs, past, length), past.shift
        if self.positions == "compact":
            unpruned = to_device(plan.stays, device)
            positions, shift = renumbered(self.family.positions, positions, unpruned, keep, past.shift)
        new["position_ids"] = packing.take_last(positions)
        # Always an explicit mask: without one, gaps in positions are read as packed sequences.
        valid = torch.cat([past.mask(plan.mask), packing.valid], 1)
        new["attention_mask"] = valid
        if self.family.masks == "base":
            window = getattr(self.text.config, "sliding_window", None)
            new["attention_mask"] = shortened(kwargs.get("attention_mask"), packing, past, valid, window)
        if self._reads_cache_position:
            new["cache_position"] = torch.arange(past.physical, valid.shape[1], device=valid.device)

        columns = torch.cat([past.columns, past.logical + packing.index], 1)
        state.layout = Layout(columns, valid, past.logical + length, shift, weakref.ref(self.base))
        state.shrunk = True
        state.labels_follow(packing)
        if self._deep is not None:
            state.deep = self._deep_call(cache, past, plan)
        return new

    def _deep_call(self, cache: Any, past: Past, plan: Plan) -> Deep:
        """What the upper layers need to know of a prefill."""
        assert self._deep is not None
        device, (batch, length) = plan.embeds.device, plan.stays.shape
        if plan.packing is None or plan.host_packing is None:
            real, valid = plan.real, to_device(plan.real, device)
            columns = torch.arange(length, device=device).expand(batch, -1)
        else:
            real, valid, columns = plan.host_packing.valid, plan.packing.valid, plan.packing.index
        return Deep(
            past=[past.upper(cache, layer, plan.mask) for layer in self._deep_layers],
            embeds=plan.fed,
            columns=past.logical + columns,
            valid=valid,
            real=real,
            below=torch.cat([past.mask(plan.mask), valid], 1),
            seen=past.logical + length,
            differs=past.layout is not None and bool(past.layout.upper),
            visual=plan.deep_inputs(),
            records=plan.records,
        )

    def _follow(self, state: _Call, layout: Layout, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a call that prunes nothing, on a cache that was pruned before."""
        cache = cache_among(kwargs)
        tokens = kwargs.get("inputs_embeds")
        tokens = kwargs["input_ids"] if tokens is None else tokens
        batch, length = tokens.shape[:2]
        past = Past.of(cache, batch, tokens.device)
        new = dict(kwargs)
        positions = callers_positions(kwargs, past, length)
        if layout.shifted:
            positions = positions - past.shift[:, None]
        new["position_ids"] = positions
        mask = None
        if self.family.masks == "text":
            mask = padding_mask(kwargs.get("attention_mask"), cache, batch, length)
            if mask is not None or layout.padded:
                new["attention_mask"] = layout.mask(mask, past.physical + length)
        if layout.upper and state.deep is None:
            upper = [past.upper(cache, layer, mask) for layer in layout.upper]
            valid = layout.mask(mask, past.physical + length)
            now = valid[:, -length:]
            columns = past.logical + torch.arange(length, device=now.device).expand(batch, -1)
            state.deep = Deep(upper, columns, now, valid, past.logical + length, differs=True)
        if self._reads_cache_position:
            new["cache_position"] = past.physical + torch.arange(length, device=tokens.device)
        return new
