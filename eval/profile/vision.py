"""The vision encoder's part of a profile: timed where it runs, or run once for all calls that would repeat it."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...patches.modules import base_of
from ...policies.stages import Stage
from ..policy_names import acting
from ..setting import PruningSetting
from .counting import count_flops, now, peak_bytes


def runs_the_encoder(setting: PruningSetting) -> bool:
    """Whether what a setting does depends on how the vision encoder runs: it acts before or inside it, or reads it."""
    policies = [each for policy in setting.policies for each in acting(policy)]
    early = any(not {Stage.PIXELS, Stage.ENCODER}.isdisjoint(policy.stages) for policy in policies)
    return early or any(policy.encoder_spec() is not None for policy in policies)


class _Encoded(BaseException):
    """Ends a call of the model as soon as its visual inputs are encoded."""


@dataclass
class _Call:
    """A call of a feature function, and what it returned."""

    encode: Callable[[], Any]
    output: Any


@dataclass
class Vision:
    """The feature functions of one model, wrapped on the instance.

    Attributes:
        device: of the model.
        spent: milliseconds spent on features since it was set to 0.
        calls: by name of the feature function, its call in `encode_once`.
        flops: of these calls.
        peak_bytes: the most memory in use at a time during them.
        count_ms: how long these calls took, milliseconds.
        ran_flops: of calls since `counted` was entered.
    """

    device: torch.device
    spent: float = 0.0
    calls: dict[str, _Call] = field(default_factory=dict)
    flops: int = 0
    peak_bytes: int = 0
    count_ms: float = 0.0
    ran_flops: int = 0
    _counts: bool = False
    _mode: str = "through"
    _depth: int = 0

    def encode_once(self, forward: Callable[[], Any]) -> None:
        """Encode the visual inputs of a forward call, counting FLOPs and memory; the rest of the call does not run."""
        self._mode = "count"
        try:
            forward()
        except _Encoded:
            pass
        finally:
            self._mode = "through"

    def time_once(self) -> float:
        """Encode them again: milliseconds."""
        started = now(self.device)
        for call in self.calls.values():
            call.encode()
        return now(self.device) - started

    @contextmanager
    def replayed(self, anew: bool = False) -> Iterator[None]:
        """A context in which calls get the features of `encode_once` at once.

        Args:
            anew: in memory of their own, as if they had just been computed.
        """
        self._mode = "replay anew" if anew else "replay"
        try:
            yield
        finally:
            self._mode = "through"

    @contextmanager
    def counted(self) -> Iterator[None]:
        """A context in which the FLOPs of calls that run are counted."""
        self.ran_flops, self._counts = 0, True
        try:
            yield
        finally:
            self._counts = False

    def run(self, name: str, encode: Callable[[], Any]) -> Any:
        """A call of a feature function."""
        if self._depth:  # Qwen3-VL encodes videos through its image function
            return encode()
        self._depth += 1
        try:
            if self._mode.startswith("replay") and name in self.calls:
                output = self.calls[name].output  # copied, as pruning notes on it where it came from
                return copy.deepcopy(output) if self._mode == "replay anew" else copy.copy(output)
            if self._mode == "count":
                self._count(name, encode)
                raise _Encoded
            started = now(self.device)
            with count_flops() if self._counts else contextlib.nullcontext() as counter:
                output = encode()
            self.spent += now(self.device) - started
            self.ran_flops += 0 if counter is None else counter.get_total_flops()
            return output
        finally:
            self._depth -= 1

    def _count(self, name: str, encode: Callable[[], Any]) -> None:
        made: list[Any] = []
        started = now(self.device)
        with count_flops() as counter:
            self.peak_bytes = peak_bytes(lambda: made.append(encode()), self.device)
        self.count_ms += now(self.device) - started
        self.flops = counter.get_total_flops()
        self.calls[name] = _Call(encode, made[0])


@contextmanager
def vision_of(model: nn.Module, device: torch.device) -> Iterator[Vision]:
    """The feature functions of a model, wrapped until the block ends."""
    base, vision = base_of(model), Vision(device)

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            return vision.run(name, functools.partial(original, *args, **kwargs))

        return functools.update_wrapper(run, original)  # generate() reads the signature

    names = [name for name in ("get_image_features", "get_video_features") if hasattr(base, name)]
    before = {name: vars(base)[name] for name in names if name in vars(base)}
    for name in names:
        setattr(base, name, wrapped(name, getattr(base, name)))
    try:
        yield vision
    finally:
        for name in names:
            delattr(base, name)
        vars(base).update(before)
