"""Encoder-stage pruning: tokens leave between the layers of the vision tower, which gets cheaper by that.

Behind the projector the raster is whole again, with zeros where tokens have left, so that the model lays
its features out as always; before the language model they are dropped.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..budget import Budget, PartBudget
from ..device import to_host
from ..policies.answers import checked_cut, orderly
from ..policies.base import Policy
from ..policies.types import TowerCut, TowerView
from .attention_tap import AttentionTap
from .call import guarded
from .encoder_capture import Encoder, Heard, Kind


@dataclass
class TowerCall:
    """One call of the vision tower, as it stands at the layer that is running.

    Attributes:
        n: tokens of a picture or tile, CLS not counted; 0 until the first cut.
        kept: (B, K) int64 ascending, which of them are left; None while all are.
        sizes: (B, M) float, patches that each token stands for, CLS included.
        orderly: per cut, () bool on the device: whether the policy's indices were as they should be.
    """

    stage: TowerStage
    n: int = 0
    n_keep: int = 0
    kept: Tensor | None = None
    sizes: Tensor | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    heads: tuple[Tensor, Tensor, Tensor, float | None] | None = None
    orderly: list[Tensor] = field(default_factory=list)

    def whole(self, values: Tensor) -> Tensor:
        """(B, K, C) values of what is left as (B, N, C), zeros elsewhere."""
        if self.kept is None:
            return values
        index = self.kept.to(values.device)[..., None].expand_as(values)
        return values.new_zeros(len(values), self.n, values.shape[2]).scatter(1, index, values)

    def left(self) -> Tensor | None:
        """(B, N, 1) float, one where a token is left; None while all are."""
        return None if self.kept is None else self.whole(torch.ones_like(self.kept, dtype=torch.float32)[..., None])


_CALL: ContextVar[TowerCall | None] = ContextVar("tokenprune_tower", default=None)


class TowerStage:
    """Hooks on the layers of a vision tower, up to the one whose output the projector reads, or on its embeddings
    for a policy that resizes pictures; and on the projector."""

    def __init__(self, base: nn.Module, encoder: Encoder, policy: Policy, budget: Budget | PartBudget):
        assert encoder.tower is not None and encoder.projector is not None
        self.base, self.encoder, self.policy, self.budget = base, encoder, policy, budget
        self.layers: list[Any] = list(encoder.tower(base))
        self.cls = int(encoder.has_cls(base))
        self.resizes = type(policy).resized is not Policy.resized
        self._taps = [AttentionTap(layer.self_attn, self._read) for layer in self.layers[:-1]]
        self._handles: list[Any] = []

    def attach(self) -> None:
        if self.resizes:
            assert self.encoder.embeddings is not None
            embeddings = self.encoder.embeddings(self.base)
            self._handles.append(embeddings.register_forward_pre_hook(self._enter_embeddings, with_kwargs=True))
        else:
            for tap in self._taps:
                tap.attach()
            for i, layer in enumerate(self.layers[1:]):
                enter = functools.partial(self._enter, i)
                self._handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
        projector = self.base.get_submodule(self.encoder.projector)  # type: ignore[arg-type]
        self._handles.append(projector.register_forward_hook(self._leave_projector))

    def detach(self) -> None:
        for tap in self._taps:
            tap.detach()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def cutting(self) -> Iterator[TowerCall]:
        """Let tokens leave in the tower's calls of a block, in this thread alone."""
        call = TowerCall(self)
        token = _CALL.set(call)
        try:
            yield call
        finally:
            _CALL.reset(token)

    def heard(self, call: TowerCall, heard: Heard, kind: Kind, lengths: list[int], inputs: Mapping[str, Any]) -> Heard:
        """What was heard, and by visual input what is left."""
        left = call.left()
        if left is None:
            return heard
        by_input = [x[:, 0] > 0.5 for x in self.encoder.regroup(self.base, kind, left, lengths, inputs)]
        checks = [torch.stack(call.orderly)] if call.orderly else []
        heard.left = to_host([*by_input, *(check.to(by_input[0].device) for check in checks)])
        if checks and not bool(heard.left.pop().all()):
            raise ValueError(
                f"policy {self.policy.label!r} must return ascending, distinct indices for every picture, within range "
                "and with the CLS token first where there is one, and finite hidden states"
            )
        return heard

    def _call(self) -> TowerCall | None:
        """The call that runs in this thread, if it is of this tower."""
        call = _CALL.get()
        return call if call is not None and call.stage is self else None

    def _read(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> None:
        call = self._call()
        if call is not None:
            call.heads = (query, key, value, kwargs.get("scaling"))

    def _enter_embeddings(self, module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Resize the pictures, if the policy wants smaller ones."""
        call = self._call()
        if call is None:
            return None
        pixels = args[0] if args else kwargs["pixel_values"]
        height, width = (side // module.patch_size for side in pixels.shape[-2:])
        n_keep = self.budget.count(height * width)
        size = None if n_keep >= height * width else self.policy.resized(height, width, n_keep)
        if size is None:
            return None
        rows, columns = size
        pixels = F.interpolate(
            pixels.to(torch.promote_types(pixels.dtype, torch.float32)),
            (rows * module.patch_size, columns * module.patch_size),
            mode="bicubic",
            antialias=True,
        ).to(pixels.dtype)
        places = self.policy.places(height, width, rows, columns)
        call.n, call.n_keep = height * width, len(places)
        call.kept = torch.tensor(places, device=pixels.device).expand(len(pixels), -1)
        kwargs = {**kwargs, "interpolate_pos_encoding": True}
        return ((pixels, *args[1:]), kwargs) if args else (args, {**kwargs, "pixel_values": pixels})

    def _enter(self, cut: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        call = self._call()
        if call is None or call.heads is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        if call.n == 0:
            call.n = hidden.shape[1] - self.cls
            call.n_keep = self.budget.count(call.n)
            call.sizes = hidden.new_ones(hidden.shape[:2], dtype=torch.promote_types(hidden.dtype, torch.float32))
        if call.n_keep >= call.n:
            return None
        hidden = self._cut(call, cut, hidden)
        more = self._mask(call, hidden)
        if args:
            rest = args[1:] if more is None else (more, *args[2:])
            return (hidden, *rest), kwargs if more is None or len(args) > 1 else {**kwargs, "attention_mask": more}
        return args, {**kwargs, "hidden_states": hidden} | ({} if more is None else {"attention_mask": more})

    @torch.no_grad()
    def _choose(self, call: TowerCall, cut: int, hidden: Tensor) -> TowerCut | None:
        assert call.heads is not None and call.sizes is not None
        query, key, value, scaling = call.heads
        view = TowerView(
            hidden=hidden,
            query=query,
            key=key,
            value=value,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            cls=bool(self.cls),
            sizes=call.sizes,
            cut=cut,
            n_cuts=len(self.layers) - 1,
            n_before=call.n,
            n_keep=call.n_keep,
            memory=call.memory,
        )
        with guarded():
            answer = checked_cut(self.policy.label, view, self.policy.tower_select(view))
        if answer is not None:
            call.orderly.append(orderly(view, answer))
            answer = replace(answer, keep=answer.keep.clamp(0, hidden.shape[1] - 1))  # until `heard` has looked
        return answer

    def _cut(self, call: TowerCall, cut: int, hidden: Tensor) -> Tensor:
        chosen = self._choose(call, cut, hidden)
        call.heads = None
        if chosen is None:
            return hidden
        assert call.sizes is not None
        keep = chosen.keep
        kept = (keep[:, self.cls :] - self.cls).clamp(min=0)
        call.kept = kept if call.kept is None else call.kept.gather(1, kept)
        call.sizes = call.sizes.gather(1, keep) if chosen.sizes is None else chosen.sizes
        if chosen.hidden is not None:
            return chosen.hidden
        return hidden.gather(1, keep[..., None].expand(-1, -1, hidden.shape[2]))

    def _mask(self, call: TowerCall, hidden: Tensor) -> Tensor | None:
        """Additive (B, 1, M, M): a token that stands for several is as loud as they were."""
        if not self.policy.proportional or call.kept is None:
            return None
        assert call.sizes is not None
        loud = call.sizes.log().to(hidden.dtype)[:, None, None]
        return loud.expand(-1, -1, hidden.shape[1], -1)

    def _leave_projector(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        call = self._call()
        if call is None or call.kept is None:
            return None
        if self.policy.exact and call.kept.shape[1] != call.n_keep:
            raise ValueError(
                f"policy {self.policy!r} left {call.kept.shape[1]} tokens in the vision tower, asked for {call.n_keep}"
            )
        return call.whole(output)
