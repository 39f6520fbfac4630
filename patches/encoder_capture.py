"""What a policy may hear of the vision encoder: saliency, keys and features, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..ops import attention_received
from ..policies.types import EncoderSpec
from .attention_tap import AttentionTap

Kind = Literal["image", "video"]

#: Regroups values per encoder token, (pieces, M, C) in the order the encoder has them, into one
#: (N, C) tensor per visual input, in the order of its candidates:
#: `regroup(base, kind, values, lengths, inputs)`.
Regroup = Callable[[Any, Kind, Tensor, list[int], Mapping[str, Any]], list[Tensor]]


@dataclass(frozen=True)
class Encoder:
    """Facts about a family's vision encoder.

    Attributes:
        attention: attention module of a layer, `"feature"` (the one whose output the projector reads,
            or its last with full attention) or `"last"`, `attention(base, layer)`.
        has_cls: whether token 0 is a CLS token, `has_cls(base)`.
        regroup: see `Regroup`.
        projector: attribute of the pointwise projector, where tokens before and after it are
            one-to-one; None otherwise.
        packed: where the encoder takes all inputs as one sequence, the length of each in it,
            `packed(base, inputs)`; None where that is not known.
        tower: the layers of the vision tower up to the one whose output the projector reads,
            `tower(base)`; None where tokens cannot leave between them. Needs `projector`.
        embeddings: the module that makes patches of pixels, `embeddings(base)`; goes with `tower`.
    """

    attention: Callable[[Any, Literal["feature", "last"]], nn.Module]
    has_cls: Callable[[Any], bool]
    regroup: Regroup
    projector: str | None = None
    packed: Callable[[Any, Mapping[str, Any]], list[int] | None] | None = None
    tower: Callable[[Any], Sequence[nn.Module]] | None = None
    embeddings: Callable[[Any], nn.Module] | None = None


@dataclass
class Heard:
    """Per visual input of one encoder call."""

    attention: list[Tensor] | None = None  # (N,)
    keys: list[Tensor] | None = None  # (N, H * d) or (N, d)
    features: list[Tensor] | None = None  # (N, D_v)
    left: list[Tensor] | None = None  # (N,) bool on the host, of tokens that may have left inside the tower


@dataclass
class _Notes:
    packed: list[int] | None = None
    attention: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)


_NOTES: ContextVar[_Notes | None] = ContextVar("tokenprune_encoder_notes", default=None)


class EncoderListener:
    """Taps what a policy's `EncoderSpec` asks for, while features of one model are computed."""

    def __init__(self, base: nn.Module, encoder: Encoder, spec: EncoderSpec):
        self.base, self.encoder, self.spec = base, encoder, spec
        self.cls = encoder.has_cls(base)
        self.rows = spec.rows if self.cls else spec.without_cls if spec.rows == "cls" else spec.rows
        self._tap = AttentionTap(encoder.attention(base, spec.layer), self._read)
        self._handles: list[Any] = []

    def attach(self) -> None:
        if self.rows is not None or self.spec.keys is not None:
            self._tap.attach()
        if self.spec.features and self.encoder.projector is not None:
            projector = self.base.get_submodule(self.encoder.projector)
            self._handles.append(projector.register_forward_pre_hook(self._read_features))

    def detach(self) -> None:
        self._tap.detach()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def listening(self, inputs: Mapping[str, Any]) -> Iterator[_Notes]:
        """Note what passes the taps in a block that runs the feature function, in this thread alone."""
        notes = _Notes(None if self.encoder.packed is None else self.encoder.packed(self.base, inputs))
        token = _NOTES.set(notes)
        try:
            yield notes
        finally:
            _NOTES.reset(token)

    def heard(
        self,
        notes: _Notes,
        kind: Kind,
        lengths: list[int],
        inputs: Mapping[str, Any],
        whole: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> Heard:
        """Notes by visual input; `whole` puts values of what is left in the tower back into the raster."""

        def regroup(values: list[Tensor]) -> list[Tensor] | None:
            if not values:
                return None
            joined = whole(torch.cat(values, 1 if values[0].shape[0] == 1 else 0))
            return self.encoder.regroup(self.base, kind, joined, lengths, inputs)

        attention = regroup(notes.attention)
        return Heard(
            attention=None if attention is None else [a[:, 0] for a in attention],
            keys=regroup(notes.keys),
            features=regroup(notes.features),
        )

    def _read(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> None:
        notes = _NOTES.get()
        if notes is None:
            return
        borders = kwargs.get("cu_seq_lens_q")  # FlashAttention takes all chunks of a Qwen tower at once
        lengths = [query.shape[2]] if borders is None else (borders[1:] - borders[:-1]).tolist()
        lengths = notes.packed or lengths
        with torch.no_grad():
            for q, k in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
                self._note(notes, q, k, kwargs.get("scaling"))

    def _note(self, notes: _Notes, query: Tensor, key: Tensor, scaling: float | None) -> None:
        skip = int(self.cls)
        joined = key.transpose(1, 2).flatten(2)  # (B, M, H * d)
        if self.spec.keys is not None:
            keys = joined if self.spec.keys == "joined" else key.mean(1)
            notes.keys.append(keys[:, skip:])
        if self.rows is None:
            return
        if self.spec.joined_heads:
            query, key, scaling = query.transpose(1, 2).flatten(2)[:, None], joined[:, None], None
        if self.rows == "cls":
            rows = torch.zeros(1, dtype=torch.int64, device=query.device)
        else:
            rows = torch.arange(0 if self.spec.cls_query else skip, query.shape[2], device=query.device)
        received = attention_received(query, key, rows=rows, scaling=scaling)
        notes.attention.append(received[:, skip:, None])

    def _read_features(self, module: nn.Module, args: tuple) -> None:
        notes = _NOTES.get()
        if notes is not None:
            notes.features.append(args[0].detach())
