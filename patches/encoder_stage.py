"""Encoder-stage pruning: tokens leave between the layers of the vision encoder, which gets cheaper by that.

Behind the projector the raster is whole again, with zeros where tokens have left, so that the model lays its features
out as always. Those zeros are dropped before the language model.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..budget import Budget, IntermediateBudget, TokenBudget
from ..device import to_host
from ..mean_budget import MeanBudgetBefore
from ..policies.answers import orderly
from ..policies.base import Policy
from ..policies.stages import Stage
from ..policies.types import TowerCut, TowerView
from ..stopwatch import Stopwatch
from .attention_tap import AttentionTap
from .encoder_activations import EncoderActivations
from .encoder_call import EncoderCall, left_before
from .families.base import EncoderValues, Family, Kind
from .tower_hooks import InsideTower, not_inside

logger = logging.getLogger(__name__)


def refuse_own_counts(
    base: nn.Module, policy: Policy, budget: TokenBudget, where: str
) -> Budget | IntermediateBudget | MeanBudgetBefore:
    """The budget, if it has a number. Else raise `ValueError`: the policy acts at that place of a tower that keeps the
    same number of every picture."""
    if isinstance(budget, Budget | IntermediateBudget | MeanBudgetBefore):
        return budget
    model_type = base.config.model_type  # type: ignore[union-attr]
    raise ValueError(
        f"policy {policy!r} acts {where} the vision tower, which keeps the same number of every picture "
        f"on model type {model_type!r}, so it cannot find its own there; give it a number, as "
        "keep=0.25 or, in a list, keep=[0.5, 0.25]"
    )


class EncoderStage(InsideTower[EncoderCall]):
    """Hooks on the vision encoder's layers and on the projector.

    Layers are those up to the one whose output the projector reads. For a policy that resizes pictures, the hook is on
    the embeddings instead.

    Args:
        base: the base model.
        family: its facts.
        policy: acts at the encoder stage.
        budget: of it.

    Raises:
        ValueError: where the model's vision encoder, or its attention implementation, does not allow it.
    """

    #: Which stage it is, and where that is.
    stage: Stage = Stage.ENCODER
    where = "inside"

    def __init__(self, base: nn.Module, family: Family, policy: Policy, budget: TokenBudget):
        self.base, self.policy, self.budget = base, policy, refuse_own_counts(base, policy, budget, self.where)
        encoder = family.encoder
        if encoder is None or encoder.layers is None:
            restoring = encoder is not None and encoder.raster_layers is not None
            others = "ipcv, whose patches come back behind the tower, or " if restoring else ""
            raise not_inside(policy, base, family.no_encoder_stage, others)
        assert encoder.embeddings is not None and encoder.projector is not None
        self.encoder = encoder
        self.layers: list[Any] = list(encoder.layers(base))
        self.embeddings: Any = encoder.embeddings(base)
        self.projector = base.get_submodule(encoder.projector)
        self.n_cls = int(encoder.has_cls(base))
        self.resizes = type(policy).resized_shape is not Policy.resized_shape
        self._refuse_what_does_not_fit()
        self._taps = [AttentionTap(layer.self_attn, self._read) for layer in self.layers[:-1]]
        self._handles: list[Any] = []

    def _refuse_what_does_not_fit(self) -> None:
        policy = self.policy
        if len(self.layers) < 2:
            raise ValueError(f"policy {policy!r} needs a vision tower of two layers or more below one output")
        if self.resizes and hasattr(self.embeddings, "class_embedding") and not self.n_cls:
            raise ValueError(f"policy {policy!r} cannot place the CLS token that this model feeds its language model")
        implementation = self.layers[0].self_attn.config._attn_implementation or ""
        if policy.proportional and "flash" in implementation:
            raise ValueError(
                f"policy {policy!r} masks attention in the vision tower by how many patches a token stands for, "
                f"which {implementation} does not take; use proportional_attention=False, or sdpa in the vision tower"
            )

    def attach(self) -> None:
        if self.resizes:
            hook = self.embeddings.register_forward_pre_hook(self._enter_embeddings, with_kwargs=True)
            self._handles.append(hook)
        else:
            for tap in self._taps:
                tap.attach()
            for i, layer in enumerate(self.layers[1:]):
                enter = functools.partial(self._enter_layer, i)
                self._handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
        # before that of the stage before the tower, which puts back what has left there
        self._handles.append(self.projector.register_forward_hook(self._leave_projector, prepend=True))

    def cutting(self) -> AbstractContextManager[EncoderCall]:
        """Let tokens leave in the encoder's calls of a block, in this thread alone."""
        return self._during(EncoderCall(self))

    def mark_kept(
        self,
        call: EncoderCall,
        activations: EncoderActivations,
        kind: Kind,
        lengths: list[int],
        arguments: Mapping[str, Any],
    ) -> EncoderActivations:
        """Note by visual input which tokens are left after a call of the feature function.

        Raises:
            ValueError: if the policy gave indices or hidden states that are not as they should be.
        """
        mask = call.kept_mask()
        if mask is None:
            return activations
        by_input = self.encoder.regroup(EncoderValues(self.base, kind, mask, lengths, arguments))
        kept = [value[:, 0] > 0.5 for value in by_input]
        checks = [torch.stack(call.orderly)] if call.orderly else []
        on_host = to_host([*kept, *(check.to(kept[0].device) for check in checks)])
        total = sum(map(len, kept))
        activations.select_ms[str(self.stage)] = [call.select_ms * len(each) / total for each in kept]
        activations.kept[str(self.stage)] = on_host[: len(kept)]
        if checks and not bool(on_host[-1].all()):
            raise ValueError(
                f"policy {self.policy.label!r} must return ascending, distinct indices for every picture, within range "
                "and with the CLS token first where there is one, and finite hidden states"
            )
        return activations

    def _enter_embeddings(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Resize the pictures, if the policy wants smaller ones."""
        call = self._call()
        if call is None:
            return None
        pixels = args[0] if args else kwargs["pixel_values"]
        height, width = (side // module.patch_size for side in pixels.shape[-2:])
        n_keep = self.budget.count(height * width)
        size = None if n_keep >= height * width else self.policy.resized_shape(height, width, n_keep)
        if size is None:
            return None
        watch = Stopwatch(pixels.device)
        rows, columns = size
        pixels = F.interpolate(
            pixels.to(torch.promote_types(pixels.dtype, torch.float32)),
            (rows * module.patch_size, columns * module.patch_size),
            mode="bicubic",
            antialias=True,
        ).to(pixels.dtype)
        sources = self.policy.source_indices(height, width, rows, columns)
        call.n, call.n_keep = height * width, len(sources)
        call.kept = torch.tensor(sources, device=pixels.device).expand(len(pixels), -1)
        call.select_ms += watch.ms()
        kwargs = {**kwargs, "interpolate_pos_encoding": True}
        return ((pixels, *args[1:]), kwargs) if args else (args, {**kwargs, "pixel_values": pixels})

    def _enter_layer(
        self, cut: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        call = self._call()
        if call is None or call.heads is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        if call.n == 0:
            call.n, call.before = hidden.shape[1] - self.n_cls, left_before(self.base)
            call.n_keep = self.budget.count(call.n if call.before is None else call.before.n)
            call.sizes = hidden.new_ones(hidden.shape[:2], dtype=torch.promote_types(hidden.dtype, torch.float32))
        if call.n_keep >= call.n:
            return None
        hidden = self._cut(call, cut, hidden)
        bias = self._size_bias(call, hidden)
        if args:
            rest = args[1:] if bias is None else (bias, *args[2:])
            return (hidden, *rest), kwargs if bias is None or len(args) > 1 else {**kwargs, "attention_mask": bias}
        return args, {**kwargs, "hidden_states": hidden} | ({} if bias is None else {"attention_mask": bias})

    @torch.no_grad()
    def _choose(self, call: EncoderCall, cut: int, hidden: Tensor) -> TowerCut | None:
        assert call.heads is not None and call.sizes is not None
        query, key, value, scaling = call.heads
        view = TowerView(
            hidden=hidden,
            query=query,
            key=key,
            value=value,
            scaling=scaling,
            cls=bool(self.n_cls),
            sizes=call.sizes,
            cut=cut,
            n_cuts=len(self.layers) - 1,
            n_before=call.n,
            n_keep=call.n_keep,
            memory=call.memory,
        )
        answer = self._select(view)
        if answer is not None:
            call.orderly.append(orderly(view, answer))
            # Wrong indices are refused by `mark_kept`; until then they must not stop a device.
            answer = replace(answer, keep=answer.keep.clamp(0, hidden.shape[1] - 1))
        return answer

    def _cut(self, call: EncoderCall, cut: int, hidden: Tensor) -> Tensor:
        watch = Stopwatch(hidden.device)
        chosen = self._choose(call, cut, hidden)
        call.select_ms += watch.ms()
        call.heads = None
        if chosen is None:
            return hidden
        assert call.sizes is not None
        keep = chosen.keep
        kept = (keep[:, self.n_cls :] - self.n_cls).clamp(min=0)
        call.kept = kept if call.kept is None else call.kept.gather(1, kept)
        call.sizes = call.sizes.gather(1, keep) if chosen.sizes is None else chosen.sizes
        call.has_pads = chosen.has_pads
        logger.debug("encoder cut %d: %d of %d tokens are left", cut, keep.shape[1], hidden.shape[1])
        if chosen.hidden is not None:
            return chosen.hidden
        return hidden.gather(1, keep[..., None].expand(-1, -1, hidden.shape[2]))

    def _size_bias(self, call: EncoderCall, hidden: Tensor) -> Tensor | None:
        """Additive mask (B, 1, M, M), log of the patches that a token stands for: it gets the attention they had.

        Tokens that pad get none.
        """
        if call.kept is None or not (self.policy.proportional or call.has_pads):
            return None
        assert call.sizes is not None
        if "flash" in (self.layers[0].self_attn.config._attn_implementation or ""):
            raise ValueError(
                f"policy {self.policy!r} left different numbers of tokens of the pictures of a batch, which takes a "
                "mask that FlashAttention does not take; use sdpa in the vision tower, one picture at a time, or an "
                "option of the policy that keeps the numbers equal"
            )
        sizes = call.sizes if self.policy.proportional else (call.sizes > 0).to(call.sizes.dtype)
        log_size_bias = sizes.log().to(hidden.dtype)[:, None, None]
        return log_size_bias.expand(-1, -1, hidden.shape[1], -1)

    def _leave_projector(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        call = self._call()
        if call is None or call.kept is None:
            return None
        if self.policy.exact and call.kept.shape[1] != call.n_keep:
            raise ValueError(
                f"policy {self.policy!r} left {call.kept.shape[1]} tokens in the vision tower, asked for {call.n_keep}"
            )
        return call.whole_raster(output)
