"""Everything that is hung on a model's modules, and taken off again."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from .cache import STATE_ATTRIBUTE
from .config import PruningConfig
from .encoder_parts import EncoderParts
from .families.base import Kind
from .feature_source import FeatureSource
from .feature_tap import FeatureTap
from .generation import STAND_INS

logger = logging.getLogger(__name__)

Hook = Callable[..., Any]


class Part(Protocol):
    """What hangs hooks of its own: a stage, a capture."""

    def attach(self) -> None: ...

    def detach(self) -> None: ...


@dataclass(frozen=True)
class Hooks:
    """What is called when a module of the model is entered or left, as torch's hooks with keyword arguments.

    Attributes:
        enter_head: on every module above the base model.
        enter_base, leave_base: on the base model.
        enter_text, leave_text: on the text model.
        enter_layer: on every decoder layer under FlashAttention.
        record_features: when features of pictures or videos have been computed: kind, output, source.
    """

    enter_head: Hook
    enter_base: Hook
    leave_base: Hook
    enter_text: Hook
    leave_text: Hook
    enter_layer: Hook
    record_features: Callable[[Kind, Any, FeatureSource], None]


class Attachment:
    """The hooks, taps and attributes of one pruning on its model.

    Args:
        config: of the pruning.
        owner: what the base model holds as its attribute `STATE_ATTRIBUTE`.
        hooks: what the hooks call.
        encoder: parts that hang hooks of their own on the vision encoder.
        decoder: what does so on decoder layers; None where nothing does.

    Attributes:
        taps: what takes the place of the functions that compute visual features, by kind of input.
    """

    def __init__(
        self,
        config: PruningConfig,
        owner: Any,
        hooks: Hooks,
        encoder: EncoderParts,
        decoder: Part | None,
    ):
        self.config, self.owner, self.hooks = config, owner, hooks
        self.encoder = encoder
        self._parts: Sequence[Part] = [*encoder, *([] if decoder is None else [decoder])]
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
        config, hooks = self.config, self.hooks
        setattr(config.base, STATE_ATTRIBUTE, self.owner)
        for head in config.heads:
            self._handles.append(head.register_forward_pre_hook(hooks.enter_head, with_kwargs=True))
        self._hook(config.base, hooks.enter_base, hooks.leave_base)
        self._hook(config.text, hooks.enter_text, hooks.leave_text)
        for part in self._parts:
            part.attach()
        for kind in config.family.kinds:
            name = FeatureTap.name_of(kind)
            if name in vars(config.base):  # a wrapper that is not ours stays, inside of ours
                self._wrapped.add(name)
            tap = FeatureTap(config.base, config.family, kind, hooks.record_features, self.encoder)
            self.taps[kind] = tap
            setattr(config.base, name, tap)
        for stand_in in STAND_INS if config.heads else ():
            if stand_in.fits(config.heads[-1]):
                setattr(config.heads[-1], stand_in.NAME, stand_in(config, self.sources))
        compile_anew()

    def detach(self) -> None:
        """Take off what hangs, all of it, even if a part of the model is broken."""
        config = self.config
        with contextlib.ExitStack() as rest:
            rest.callback(compile_anew)
            if getattr(config.base, STATE_ATTRIBUTE, None) is self.owner:
                rest.callback(delattr, config.base, STATE_ATTRIBUTE)
            for stand_in in STAND_INS if config.heads else ():
                if isinstance(vars(config.heads[-1]).get(stand_in.NAME), stand_in):
                    rest.callback(delattr, config.heads[-1], stand_in.NAME)
            for kind, tap in self.taps.items():
                name = FeatureTap.name_of(kind)
                if vars(config.base).get(name) is not tap:
                    continue
                if name in self._wrapped:
                    rest.callback(setattr, config.base, name, tap.original)
                else:
                    rest.callback(delattr, config.base, name)
            for part in self._parts:
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
        for layer in self.config.text.layers:
            self._handles.append(layer.register_forward_pre_hook(self.hooks.enter_layer, with_kwargs=True))

    def source_of(self, kind: Kind, output: Any) -> FeatureSource | None:
        """Where features of a kind that were computed beforehand came from; None if that was not noted."""
        return self.taps[kind].source_of(output)

    def sources(self, encoded: Mapping[Any, Any]) -> list[FeatureSource]:
        """The same for features by kind, as `generate` hands them on."""
        found = [
            self.source_of(kind, output) for kind, output in encoded.items() if kind in self.taps and output is not None
        ]
        return [source for source in found if source is not None]

    def _hook(self, module: nn.Module, enter: Hook, leave: Hook) -> None:
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
