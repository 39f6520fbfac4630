"""What is visual in one forward call: placeholders, how they split into inputs, and their shapes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .encoder_capture import Heard
from .families.base import Family, Kind, VisualShape
from .feature_tap import FeatureTap, Source, feature_lengths

# Video-LLaVA has its own name for images, until transformers 5.24.
_PIXELS: dict[Kind, tuple[str, ...]] = {
    "image": ("pixel_values", "pixel_values_images"),
    "video": ("pixel_values_videos",),
}


@dataclass(frozen=True)
class VisualInput:
    """The placeholders of one image or video.

    Attributes:
        row: in the batch.
        columns: (N,) int64, ascending, in this call's sequence; on the host.
        kind: image or video.
        shape: its layout.
        heard: what the encoder said, and which of its inputs this is; None if nobody listened, or
            the features were computed before pruning was applied.
    """

    row: int
    columns: Tensor
    kind: Kind
    shape: VisualShape
    heard: tuple[Heard, int] | None = None


@dataclass
class Request:
    """The visual side of one forward call of the base model."""

    base: Any
    family: Family
    placeholders: dict[Kind, Tensor]  # (B, L) bool
    lengths: dict[Kind, list[int]] = field(default_factory=dict)
    sources: dict[Kind, Source] = field(default_factory=dict)
    prompt_length: int | None = None  # where a call feeds the answer so far as well; None: all of it is prompt

    @classmethod
    def of(cls, base: Any, family: Family, call: Mapping[str, Any], taps: Mapping[Kind, FeatureTap]) -> Request | None:
        """The request in a base model's arguments, or None when it feeds no visual features.

        Judged by the visual inputs, never by the length: continuations are longer than one token
        too, and a model may generate a placeholder id.
        """
        encoded = call.get("mm_encoder_outputs") or {}
        fed = [
            kind
            for kind in family.kinds
            if any(call.get(name) is not None for name in _PIXELS[kind]) or encoded.get(kind) is not None
        ]
        if not fed:
            return None
        request = cls(base, family, {kind: _placeholders(base, kind, call) for kind in fed})
        for kind in fed:
            if encoded.get(kind) is not None:
                request.saw(kind, encoded[kind], taps[kind].source_of(encoded[kind]))
        for source in request.sources.values():
            request.prompt_length = source.generation.take()
        return request

    def check(self, embeds: Tensor) -> None:
        """Raise `ValueError` unless the text model is fed the sequence whose placeholders were looked for."""
        shape = tuple(next(iter(self.placeholders.values())).shape)
        if tuple(embeds.shape[:2]) != shape:
            raise ValueError(
                f"the base model was fed a sequence of shape {shape}, and the text model {tuple(embeds.shape[:2])}: "
                "something between them changes it (a hook, perhaps), which pruning cannot follow"
            )

    def in_prompt(self, length: int) -> Tensor:
        """(length,) bool, False at the answer so far."""
        return torch.arange(length) < (length if self.prompt_length is None else self.prompt_length)

    def saw(self, kind: Kind, output: Any, source: Source | None) -> None:
        """Note the encoder output that fills the placeholders of a kind, and where it came from."""
        self.lengths[kind] = self.family.lengths(self.base.config, feature_lengths(output))
        if source is not None:
            self.sources[kind] = source

    def visual(self) -> Tensor:
        """(B, L) bool on the host, all placeholders."""
        return torch.stack(list(self._on_host.values())).any(0)

    @functools.cached_property
    def _on_host(self) -> dict[Kind, Tensor]:
        return {kind: mask.cpu() for kind, mask in self.placeholders.items()}

    def inputs(self) -> list[list[VisualInput]]:
        """The visual inputs of each row, in the order they stand in it."""
        batch = next(iter(self.placeholders.values())).shape[0]
        rows: list[list[VisualInput]] = [[] for _ in range(batch)]
        for kind, mask in self._on_host.items():
            found = _split(mask, self.lengths.get(kind))
            places = _places(found, batch, self.sources.get(kind))
            for (row, columns), place in zip(found, places, strict=True):
                source = self.sources.get(kind) if place is not None else None
                arguments = {} if source is None else source.arguments
                shape = self.family.shape(self.base.config, kind, len(columns), arguments, place or 0)
                heard = None if source is None or source.heard is None else (source.heard, place or 0)
                rows[row].append(VisualInput(row, columns, kind, shape, heard))
        for row_inputs in rows:
            row_inputs.sort(key=lambda v: int(v.columns[0]))
        return rows


def _placeholders(base: Any, kind: Kind, call: Mapping[str, Any]) -> Tensor:
    token = getattr(base.config, f"{kind}_token_id")
    if call.get("input_ids") is not None:
        return call["input_ids"] == token
    # As transformers does it: only embeddings were given, so compare with the placeholder's.
    embeds = call["inputs_embeds"]
    return (embeds == base.get_input_embeddings()(torch.tensor(token, device=embeds.device))).all(-1)


def _split(mask: Tensor, lengths: list[int] | None) -> list[tuple[int, Tensor]]:
    """Cut placeholders, on the host, into visual inputs, (row, columns) each, in the order features fill them.

    By the features' lengths where they fit; else by unbroken runs within a row.
    """
    rows, columns = mask.nonzero(as_tuple=True)
    if len(rows) == 0:
        return []
    if lengths and sum(lengths) + len(lengths) == len(rows):
        lengths = [length + 1 for length in lengths]  # OneVision adds a video's newline later, until transformers 5.x
    if lengths and sum(lengths) == len(rows):
        pieces = list(zip(rows.split(lengths), columns.split(lengths), strict=True))
        if all(bool((r == r[0]).all()) for r, _ in pieces):
            return [(int(r[0]), c) for r, c in pieces]
    breaks = (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1] + 1)
    starts = (breaks.nonzero()[:, 0] + 1).tolist()
    runs = torch.tensor_split(columns, starts)
    return [(int(rows[s]), run) for s, run in zip([0, *starts], runs, strict=True)]


def _places(found: list[tuple[int, Tensor]], batch: int, source: Source | None) -> list[int | None]:
    """Place of each visual input among those its features were computed from.

    Beams and `num_return_sequences` repeat each sample's inputs for its copies, which are neighbours.
    """
    if source is None or source.count == 0 or len(found) % source.count:
        return [None] * len(found)
    copies = len(found) // source.count
    if batch % copies:
        return [None] * len(found)
    per_row = [0] * batch
    for row, _ in found:
        per_row[row] += 1
    firsts = [sum(per_row[: sample * copies : copies]) for sample in range(batch // copies)]
    seen, places = [0] * batch, []
    for row, _ in found:
        places.append(firsts[row // copies] + seen[row])
        seen[row] += 1
    return [p if p < source.count else None for p in places]
