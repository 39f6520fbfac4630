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
from .encoder_activations import EncoderActivations
from .families.base import EncoderFacts, EncoderValues, Kind

logger = logging.getLogger(__name__)


def read_attention(
    spec: EncoderSpec,
    query: Tensor,
    key: Tensor,
    has_cls: bool,
    scaling: float | None,
    real: Tensor | None = None,
) -> dict[str, Tensor]:
    """What a policy's `EncoderSpec` means on one attention layer.

    Args:
        spec: of the policy.
        query, key: (B, H, M, d) of the layer; keys may have fewer heads.
        has_cls: whether token 0 is CLS; it is left out of the answer.
        scaling: of its scores; None: 1 / sqrt(d).
        real: (B, M) bool, False at padding; None: there is none.

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
    if key.shape[1] != query.shape[1]:  # several heads of queries share keys
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    if spec.joined_heads:
        query, key, scaling = _joined(query)[:, None], _joined(key)[:, None], None
    start, stop = (0, 1) if rows == "cls" else (0 if spec.cls_query else skip, query.shape[2])
    asking = torch.arange(start, stop, device=query.device)
    if real is not None:
        within = torch.arange(query.shape[2], device=query.device)
        asking = real & (within >= start) & (within < stop)
    values["attention"] = attention_received(query, key, rows=asking, mask=real, scaling=scaling)[:, skip:, None]
    return values


def _not_padding(mask: Any) -> Tensor | None:
    """(B, N) bool, which keys a kernel's mask lets all queries see; None where it hides none, or tells more."""
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        return None
    keys = mask if mask.ndim == 2 else mask[:, 0, 0]
    seen = keys.bool() if mask.ndim == 2 else keys if mask.dtype == torch.bool else keys == 0
    return None if bool(seen.all()) else seen


def _rows(spec: EncoderSpec, has_cls: bool) -> str | None:
    """Whose attention is read: of `"cls"`, what tokens `"received"` from all, or nobody's."""
    return spec.rows if has_cls or spec.rows != "cls" else spec.without_cls


def _joined(heads: Tensor) -> Tensor:
    """(B, M, H * d) of (B, H, M, d)."""
    return heads.transpose(1, 2).flatten(2)


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


def patches_left(lengths: list[int]) -> None:
    """What is recorded from now on is of so many patches of each input; for a call that runs in this thread."""
    recording = _RECORDING.get()
    if recording is not None and recording.packed is not None:
        recording.packed = lengths


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
        together = recording.packed is not None or borders is not None  # masks, if any, tell inputs apart
        real = None if together else _not_padding(kwargs.get("attention_mask"))
        lengths = [query.shape[2]] if borders is None else (borders[1:] - borders[:-1]).tolist()
        lengths = recording.packed or lengths
        with torch.no_grad():
            for q, k in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
                read = read_attention(self.spec, q, k, self.has_cls, kwargs.get("scaling"), real)
                for name, values in read.items():
                    recording.add(name, values)

    def _read_features(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        recording = _RECORDING.get()
        if recording is not None:
            recording.add("features", args[0].detach())

    def _read_patches(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        recording = _RECORDING.get()
        if recording is not None:
            patches = args[0].detach()
            if patches.ndim == 4:  # a convolution takes the patches of a token as a square
                patches = patches.flatten(2).mT.flatten(0, 1)
            recording.add("patches", patches[None])
