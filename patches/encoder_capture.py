"""What a policy reads of the vision encoder: attention, keys and features, token by token."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import attention_received
from ..policies.types import EncoderSpec
from .attention_tap import AttentionTap
from .families.base import EncoderFacts, EncoderValues, Kind

logger = logging.getLogger(__name__)


def read_attention(
    spec: EncoderSpec, query: Tensor, key: Tensor, has_cls: bool, scaling: float | None
) -> dict[str, Tensor]:
    """What a policy's `EncoderSpec` means on one attention layer.

    Args:
        spec: of the policy.
        query, key: (B, H, M, d) of the layer.
        has_cls: whether token 0 is CLS; it is left out of the answer.
        scaling: of its scores; None: 1 / sqrt(d).

    Returns:
        of the N tokens that are not CLS, what the spec names: `"attention"` (B, N, 1) float32, `"keys"` (B, N, C).
    """
    skip, values = int(has_cls), {}
    if spec.keys is not None:
        keys = _joined(key) if spec.keys == "joined" else key.mean(1)
        values["keys"] = keys[:, skip:]
    rows = _rows(spec, has_cls)
    if rows is None:
        return values
    if spec.joined_heads:
        query, key, scaling = _joined(query)[:, None], _joined(key)[:, None], None
    start, stop = (0, 1) if rows == "cls" else (0 if spec.cls_query else skip, query.shape[2])
    asking = torch.arange(start, stop, device=query.device)
    values["attention"] = attention_received(query, key, rows=asking, scaling=scaling)[:, skip:, None]
    return values


def _rows(spec: EncoderSpec, has_cls: bool) -> str | None:
    """Whose attention is read: of `"cls"`, what tokens `"received"` from all, or nobody's."""
    return spec.rows if has_cls or spec.rows != "cls" else spec.without_cls


def _joined(heads: Tensor) -> Tensor:
    """(B, M, H * d) of (B, H, M, d)."""
    return heads.transpose(1, 2).flatten(2)


@dataclass
class EncoderActivations:
    """What was captured in one call of the vision encoder, by visual input.

    Attributes:
        attention: (N,) each.
        keys: (N, H * d) or (N, d) each.
        features: (N, D_v) each.
        patches: (N, D_v) each, means over the patches that a merger made a token of.
        padding: (N,) bool each, on the host, True at patches that pad a picture; None where there are none.
        entropy: (N,) each, of the grey levels of a token's pixels; None where it is not known.
        kept: (N,) bool each, on the host, False at tokens that left inside the encoder; None where all are there.
        select_ms: time spent on choosing them, milliseconds, shared out by tokens; None where nothing was chosen.
    """

    attention: list[Tensor] | None = None
    keys: list[Tensor] | None = None
    features: list[Tensor] | None = None
    patches: list[Tensor] | None = None
    padding: list[Tensor] | None = None
    entropy: list[Tensor] | None = None
    kept: list[Tensor] | None = None
    select_ms: list[float] | None = None


@dataclass
class Recording:
    """Values of one call of the vision encoder, (pieces, M, C) by name, as it computes them.

    Attributes:
        packed: lengths of all inputs, where the encoder takes them as one sequence.
        values: by name: `"attention"`, `"keys"`, `"features"`, `"patches"`.
    """

    packed: list[int] | None = None
    values: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        self.values.setdefault(name, []).append(value)


_RECORDING: ContextVar[Recording | None] = ContextVar("tokenprune_encoder_recording", default=None)


def same(values: Tensor) -> Tensor:
    """Where no token has left, values are there for the whole raster."""
    return values


class EncoderCapture:
    """Taps that record what a policy's `EncoderSpec` asks for, while features of one model are computed."""

    def __init__(self, base: nn.Module, encoder: EncoderFacts, spec: EncoderSpec):
        self.base, self.encoder, self.spec = base, encoder, spec
        self.has_cls = encoder.has_cls(base)
        self._tap = AttentionTap(encoder.attention(base, spec.layer), self._read_attention)
        self._handles: list[Any] = []

    @property
    def _reads_attention(self) -> bool:
        return _rows(self.spec, self.has_cls) is not None or self.spec.keys is not None

    @property
    def looks_for_padding(self) -> bool:
        """Whether padding is asked for, of an encoder whose patches are the tokens."""
        return self.spec.padding and self.encoder.projector is not None

    def attach(self) -> None:
        if self._reads_attention:
            self._tap.attach()
        if self.spec.features and self.encoder.projector is not None:
            projector = self.base.get_submodule(self.encoder.projector)
            self._handles.append(projector.register_forward_pre_hook(self._read_features))
        if self.spec.patches and self.encoder.merger is not None:
            merger = self.encoder.merger(self.base)
            self._handles.append(merger.register_forward_pre_hook(self._read_patches))

    def detach(self) -> None:
        self._tap.detach()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def recording(self, arguments: Mapping[str, Any]) -> Iterator[Recording]:
        """Record what passes the taps in a block that runs the feature function, in this thread alone."""
        recording = Recording(None if self.encoder.packed is None else self.encoder.packed(self.base, arguments))
        token = _RECORDING.set(recording)
        try:
            yield recording
        finally:
            _RECORDING.reset(token)

    def by_input(
        self,
        recording: Recording,
        kind: Kind,
        lengths: list[int],
        arguments: Mapping[str, Any],
        whole_raster: Callable[[Tensor], Tensor] = same,
    ) -> EncoderActivations:
        """What was recorded, by visual input.

        Args:
            recording: of one call of the feature function.
            kind: of its inputs.
            lengths: placeholders of each.
            arguments: of the feature function.
            whole_raster: puts values of the tokens that are left in the encoder back into the raster.
        """
        found = EncoderActivations()
        for name, values in recording.values.items():
            joined = whole_raster(torch.cat(values, 1 if values[0].shape[0] == 1 else 0))
            by_input = self.encoder.regroup(EncoderValues(self.base, kind, joined, lengths, arguments))
            setattr(found, name, [value[:, 0] for value in by_input] if name == "attention" else by_input)
        logger.debug("encoder: captured %s of %d inputs", sorted(recording.values), len(lengths))
        return found

    def _read_attention(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]
    ) -> None:
        recording = _RECORDING.get()
        if recording is None:
            return
        borders = kwargs.get("cu_seq_lens_q")  # FlashAttention takes all chunks of a Qwen tower at once
        lengths = [query.shape[2]] if borders is None else (borders[1:] - borders[:-1]).tolist()
        lengths = recording.packed or lengths
        with torch.no_grad():
            for q, k in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
                for name, values in read_attention(self.spec, q, k, self.has_cls, kwargs.get("scaling")).items():
                    recording.add(name, values)

    def _read_features(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        recording = _RECORDING.get()
        if recording is not None:
            recording.add("features", args[0].detach())

    def _read_patches(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        recording = _RECORDING.get()
        if recording is not None:
            recording.add("patches", args[0].detach()[None])
