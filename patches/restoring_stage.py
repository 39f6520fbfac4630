"""Encoder-stage pruning that restores: patches leave between layers, and come back behind the last."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import TokenBudget
from ..policies.answers import orderly
from ..policies.base import Policy
from ..policies.stages import Stage
from ..policies.types import TowerView
from ..stopwatch import Stopwatch
from .attention_tap import AttentionTap
from .encoder_activations import EncoderActivations
from .encoder_call import left_before
from .families.base import Family, Kind
from .modules import arguments_by_name
from .recorded_outputs import refuse_recording
from .restored_frames import RestoredFrames
from .restored_tokens import RestoredTokens, mask_of
from .tower_hooks import InsideTower, not_inside, with_number

logger = logging.getLogger(__name__)

#: What layers of vision encoders call their attention.
_ATTENTION = ("self_attn", "attention", "attn")


@dataclass
class RestoringCall:
    """One call of the vision encoder, as it stands at the layer that is running.

    Attributes:
        stage: whose call it is.
        before: (B, N, D), what the layer below the first cut got; (N, D) in a tower that takes all inputs as one
            sequence.
        heads: query, key, value and scaling of that layer.
        tokens: who has left; None while all are there.
        orderly: () bool on the device, whether the policy's indices were as they should be.
        select_ms: time spent on choosing, milliseconds.
    """

    stage: object
    before: Tensor | None = None
    heads: tuple[Tensor, Tensor, Tensor, float] | None = None
    tokens: RestoredTokens | RestoredFrames | None = None
    orderly: list[Tensor] = field(default_factory=list)
    select_ms: float = 0.0

    def whole_raster(self, values: Tensor) -> Tensor:
        """(B, N, C) of (B, K, C) values that were read of what was left; others get the mean of their neighbours."""
        return values if self.tokens is None else self.tokens.to(values.device).filled(values)


class RestoringStage(InsideTower[RestoringCall]):
    """Hooks on the vision encoder's layers, up to the one whose output the language model's tokens are made of.

    Args:
        base: the base model.
        family: its facts.
        policy: says with `restoration` in front of which layer patches leave, and chooses them with `encoder_select`.
        budget: of it. It counts tokens of the language model; a token is as many patches as the model makes one of.

    Raises:
        ValueError: where the model's vision encoder, or the budget, does not allow it.
    """

    def __init__(self, base: nn.Module, family: Family, policy: Policy, budget: TokenBudget):
        self.base: Any = base
        encoder = family.encoder
        find = None if encoder is None else encoder.raster_layers or encoder.layers
        if encoder is None or find is None:
            towers = "Qwen-VL, CLIP, SigLIP, InternVL, Idefics3, SmolVLM, Aya Vision and Gemma 3"
            known = f"patches come back in the towers of {towers} only"
            raise not_inside(policy, base, family.no_encoder_stage if encoder is None else known)
        self.group = encoder.patches_per_token(base)
        self.n_cls = int(encoder.has_cls(base))
        self._set(policy, budget, list(find(base)))

    def _set(self, policy: Policy, budget: TokenBudget, layers: list[Any]) -> None:
        """What acts, and in which of the layers."""
        self.policy, self.budget, self.layers = policy, with_number(policy, budget), layers
        if len(self.layers) < 2:
            raise ValueError(f"policy {policy!r} needs a vision tower of two layers or more below one output")
        restoration = policy.restoration(len(self.layers))
        if restoration is None:
            raise ValueError(
                f"policy {policy!r} overrides restoration(), which must return a Restoration here, not None"
            )
        if not 0 < restoration.layer < len(self.layers):
            raise ValueError(
                f"policy {policy!r} lets patches leave in front of layer {restoration.layer} of the vision tower; "
                f"accepted: 1 to {len(self.layers) - 1}"
            )
        self.first, self.neighbours = restoration.layer, restoration.neighbours
        #: Layers that attend to all patches.
        self.stabilised = range(self.first, min(self.first + restoration.stabilised, len(self.layers)))
        below = self.layers[self.first - 1]
        attention = next(each for name in _ATTENTION if (each := getattr(below, name, None)) is not None)
        self._taps = [AttentionTap(attention, self._read)]
        self._handles: list[Any] = []

    def attach(self) -> None:
        self._taps[0].attach()
        below = self.layers[self.first - 1]
        self._handles.append(below.register_forward_pre_hook(self._enter_below, with_kwargs=True))
        for i in range(self.first, len(self.layers)):
            layer = self.layers[i]
            enter, leave = functools.partial(self._enter_layer, i), functools.partial(self._leave_layer, i)
            self._handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
            # first of all: what transformers records of a layer is then what the next one gets
            self._handles.append(layer.register_forward_hook(leave, prepend=True))
            if i in self.stabilised:
                self._handles.append(layer.mlp.register_forward_pre_hook(self._enter_mlp))
                self._handles.append(layer.mlp.register_forward_hook(self._leave_mlp))

    def cutting(self) -> AbstractContextManager[RestoringCall]:
        """Let patches leave in the encoder's calls of a block, in this thread alone."""
        return self._during(RestoringCall(self))

    def mark_kept(
        self,
        call: RestoringCall,
        activations: EncoderActivations,
        kind: Kind,
        lengths: list[int],
        arguments: Mapping[str, Any],
    ) -> EncoderActivations:
        """Note how long choosing took in a call of the feature function. No token has left behind it.

        Raises:
            ValueError: if the policy gave indices that are not as they should be.
        """
        if not all(bool(each) for each in call.orderly):
            raise ValueError(
                f"policy {self.policy.label!r} must return ascending, distinct indices for every picture, within range "
                "and with the CLS token first where there is one"
            )
        if call.select_ms:
            activations.select_ms[str(Stage.ENCODER)] = [call.select_ms * n / sum(lengths) for n in lengths]
        return activations

    def _enter_below(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self._call()
        if call is not None:
            call.before, call.tokens = args[0] if args else kwargs["hidden_states"], None

    def _enter_layer(
        self, i: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        call = self._call()
        if call is None:
            return None
        args, arguments = arguments_by_name(module, args, kwargs)
        hidden, mask = arguments["hidden_states"], arguments.get("attention_mask")
        if i == self.first:
            self._cut(call, hidden, mask)
        if call.tokens is None:
            return None
        tokens = call.tokens = call.tokens.to(hidden.device)
        if i in self.stabilised:
            return None if i == self.first else (args, {**arguments, "hidden_states": tokens.whole(hidden)})
        changed = {"hidden_states": tokens.kept_states if i == self.first else hidden}
        return args, {**arguments, **changed, **self._geometry(i, call, arguments)}

    def _geometry(self, i: int, call: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of layer `i` beside the states that fit the patches that stay."""
        mask = arguments.get("attention_mask")
        return {"attention_mask": mask_of(mask, call.tokens.kept.to(mask.device))} if isinstance(mask, Tensor) else {}

    def _cut(self, call: Any, hidden: Tensor, mask: Any) -> None:
        watch = Stopwatch(hidden.device)
        n = hidden.shape[1] - self.n_cls
        before = left_before(self.base)
        total = n if before is None else before.n
        n_keep = (self.budget.count(total // self.group) or 0) * self.group
        if n_keep < n:
            view = self._view(call, hidden, mask, n_keep)
            kept = self._choose(call, view)
            call.tokens = RestoredTokens.of(hidden, kept, self.neighbours, self.n_cls)
            logger.debug("encoder: %d of %d patches go through layers from %d on", n_keep, n, self.first)
        call.before = call.heads = None
        call.select_ms += watch.ms()

    def _view(self, call: RestoringCall, hidden: Tensor, mask: Any, n_keep: int) -> TowerView:
        """What the policy sees of a batch of pictures."""
        assert call.heads is not None
        query, key, value, scaling = call.heads
        return TowerView(
            hidden=hidden,
            query=query,
            key=key,
            value=value,
            scaling=scaling,
            cls=bool(self.n_cls),
            sizes=_sizes(hidden, mask),
            cut=0,
            n_cuts=1,
            n_before=hidden.shape[1] - self.n_cls,
            n_keep=n_keep,
            memory={},
            before=None if call.before is None else call.before.to(hidden.device),
        )

    @torch.no_grad()
    def _choose(self, call: RestoringCall, view: TowerView) -> Tensor:
        """(B, K) indices of what stays, a CLS token included."""
        hidden, n_keep = view.hidden, view.n_keep
        answer = self._select(view)
        if answer is None or answer.keep.shape[1] != n_keep + self.n_cls:
            left = hidden.shape[1] if answer is None else answer.keep.shape[1]
            raise ValueError(
                f"policy {self.policy!r} left {left - self.n_cls} tokens in the vision tower, asked for {n_keep}"
            )
        call.orderly.append(orderly(view, replace(answer, hidden=None)))
        return answer.keep.clamp(0, hidden.shape[1] - 1)

    def _leave_layer(self, i: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """After a layer: states of the patches that stay; behind the last layer, of all."""
        call = self._call()
        if call is None or call.tokens is None:
            return None
        states = output[0] if isinstance(output, tuple) else output
        call.tokens = call.tokens.to(states.device)
        if i in self.stabilised:
            states = call.tokens.take(states)
        if i == len(self.layers) - 1:
            refuse_recording(module, repr(self.policy))
            states = call.tokens.whole(states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def _enter_mlp(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        call = self._call()
        if call is None or call.tokens is None:
            return None
        return (call.tokens.to(args[0].device).take(args[0]), *args[1:])

    def _leave_mlp(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        call = self._call()
        return None if call is None or call.tokens is None else call.tokens.to(output.device).zeros_beside(output)


def _sizes(hidden: Tensor, mask: Any) -> Tensor:
    """(B, N) ones, with zeros at patches that an attention mask hides from all."""
    sizes = hidden.new_ones(hidden.shape[:2], dtype=torch.promote_types(hidden.dtype, torch.float32))
    if not isinstance(mask, Tensor):
        return sizes
    seen = mask if mask.ndim == 2 else mask[:, 0].amax(1)
    return sizes * (seen.bool() if mask.ndim == 2 or mask.dtype == torch.bool else seen == 0)
