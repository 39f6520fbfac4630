"""Pixel-stage pruning in towers where squares of patches become one token behind them, by shuffling or pooling."""

from __future__ import annotations

import functools
import math
from typing import Any

from torch import Tensor, nn

from ..budget import TokenBudget
from ..policies.base import Policy
from .encoder_stage import refuse_own_counts
from .families.base import Family
from .modules import arguments_by_name
from .patch_stage import PatchStage
from .recorded_outputs import refuse_recording
from .restored_tokens import mask_of, rows


class TileStage(PatchStage):
    """Hooks on the convolution that makes patches of pixels, and on the tower's layers.

    All patches of the tokens that leave are missing from the first layer on. Behind the last layer the raster is whole
    again, with zeros in their place, so that a token that stays is made of its own patches as always.

    Args:
        base: the base model.
        family: its facts.
        policy: acts at the pixels stage.
        budget: of it. It counts tokens of the language model.

    Raises:
        ValueError: for a budget without a number.
    """

    def __init__(self, base: nn.Module, family: Family, policy: Policy, budget: TokenBudget):
        encoder = family.encoder
        assert encoder is not None and encoder.patch_conv is not None and encoder.raster_layers is not None
        self.base, self.policy, self.encoder = base, policy, encoder
        self.budget = refuse_own_counts(base, policy, budget, self.where)
        self.convolution = encoder.patch_conv(base)
        self.layers = list(encoder.raster_layers(base))
        self.n_cls = int(encoder.has_cls(base))
        self.merge = math.isqrt(encoder.patches_per_token(base))
        self._taps = []
        self._handles: list[Any] = []

    def attach(self) -> None:
        self._handles.append(self.convolution.register_forward_hook(self._note_patches))
        for i, layer in enumerate(self.layers):
            enter = functools.partial(self._enter, i)
            self._handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
        # first of all: what transformers records of the layer is then what is read behind it
        self._handles.append(self.layers[-1].register_forward_hook(self._leave, prepend=True))

    def _enter(
        self, i: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before layer `i`: the patches that stay, and an attention mask of these."""
        call = self._call()
        if call is None:
            return None
        if i == 0:
            self._choose_patches(call, call.memory.pop("pixels"), call.memory.pop("embedded"))
        if call.kept is None:
            return None
        index = self._with_cls(call.kept)
        named, arguments = arguments_by_name(module, args, kwargs)
        if isinstance(arguments.get("attention_mask"), Tensor):
            mask = arguments["attention_mask"]
            arguments = {**arguments, "attention_mask": mask_of(mask, index.to(mask.device))}
        if i:
            return named, arguments
        # transformers records the first positional argument of the first layer
        arguments = dict(arguments)
        hidden = arguments.pop("hidden_states")
        return (rows(hidden, index.to(hidden.device)), *named), arguments

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """After the last layer: states of the whole raster, with zeros where patches have left."""
        call = self._call()
        if call is None or call.kept is None:
            return None
        refuse_recording(module, repr(self.policy.label))
        states = output[0] if isinstance(output, tuple) else output
        index = self._with_cls(call.kept).to(states.device)[..., None].expand_as(states)
        whole = states.new_zeros(len(states), call.n + self.n_cls, states.shape[2]).scatter(1, index, states)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole
