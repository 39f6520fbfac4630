"""Everything that is hung on a model's modules, and taken off again."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from .cache import STATE_ATTRIBUTE
from .families.base import Kind
from .feature_tap import FeatureTap
from .head import STAND_INS

if TYPE_CHECKING:
    from .pruner import Pruner

logger = logging.getLogger(__name__)


class Attachment:
    """The hooks, taps and attributes of one pruner on its model.

    Attributes:
        taps: what stands in for the functions that compute visual features, by kind of input.
    """

    def __init__(self, pruner: Pruner):
        self.pruner = pruner
        self.taps: dict[Kind, FeatureTap] = {}
        self._handles: list[Any] = []
        self._layers_hooked = False
        self._wrapped: set[str] = set()  # feature functions that somebody else had wrapped before

    def attach(self) -> None:
        """Hang everything, or nothing where a part of it fails."""
        try:
            self._attach()
        except BaseException:
            self.detach()
            raise

    def _attach(self) -> None:
        pruner = self.pruner
        setattr(pruner.base, STATE_ATTRIBUTE, pruner)
        for head in pruner.heads:
            self._handles.append(head.register_forward_pre_hook(pruner.enter_head, with_kwargs=True))
        self._hook(pruner.base, pruner.enter_base, pruner.leave_base)
        self._hook(pruner.text, pruner.enter_text, pruner.leave_text)
        for part in self._parts():
            part.attach()
        for kind in pruner.family.kinds:
            name = f"get_{kind}_features"
            if name in vars(pruner.base):  # somebody else's wrapper: ours goes around it, and leaves it there
                self._wrapped.add(name)
            lengths = functools.partial(pruner.family.lengths, pruner.base.config)
            original = getattr(pruner.base, name)
            self.taps[kind] = FeatureTap(
                pruner.base, kind, original, pruner.saw_features, lengths, pruner.encoder, pruner.tower
            )
            setattr(pruner.base, name, self.taps[kind])
        for stand_in in STAND_INS if pruner.heads else ():
            if stand_in.fits(pruner.heads[-1]):
                setattr(pruner.heads[-1], stand_in.NAME, stand_in(pruner))
        compile_anew()

    def detach(self) -> None:
        """Take off what hangs, all of it, even if a part of the model is broken."""
        pruner = self.pruner
        with contextlib.ExitStack() as rest:
            rest.callback(compile_anew)
            if getattr(pruner.base, STATE_ATTRIBUTE, None) is pruner:
                rest.callback(delattr, pruner.base, STATE_ATTRIBUTE)
            for stand_in in STAND_INS if pruner.heads else ():
                if isinstance(vars(pruner.heads[-1]).get(stand_in.NAME), stand_in):
                    rest.callback(delattr, pruner.heads[-1], stand_in.NAME)
            for kind, tap in self.taps.items():
                name = f"get_{kind}_features"
                if vars(pruner.base).get(name) is not tap:
                    continue
                if name in self._wrapped:
                    rest.callback(setattr, pruner.base, name, tap.original)
                else:
                    rest.callback(delattr, pruner.base, name)
            for part in self._parts():
                rest.callback(part.detach)
            for handle in self._handles:
                rest.callback(handle.remove)
        self._handles.clear()
        self.taps.clear()
        self._wrapped.clear()
        self._layers_hooked = False

    def hook_layers(self) -> None:
        """Hooks that FlashAttention alone needs, hung when it is first met: each costs time in every layer and step."""
        if self._layers_hooked:
            return
        self._layers_hooked = True
        for layer in self.pruner.text.layers:
            self._handles.append(layer.register_forward_pre_hook(self.pruner.enter_layer, with_kwargs=True))

    def _parts(self) -> list[Any]:
        pruner = self.pruner
        return [part for part in (pruner.encoder, pruner.tower, pruner.deep) if part is not None]

    def _hook(self, module: nn.Module, enter: Callable[..., Any], leave: Callable[..., Any]) -> None:
        self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        # always_call: an exception below must leave no state behind
        self._handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))


def compile_anew() -> None:
    """Forget what was compiled in this process: dynamo does not notice that hooks have come or gone."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None or not getattr(dynamo.config, "skip_nnmodule_hook_guards", True):
        return
    if getattr(dynamo.convert_frame, "FRAME_COUNTER", 1):
        logger.info("hooks have changed: what torch.compile has compiled in this process is compiled anew")
        dynamo.reset()
