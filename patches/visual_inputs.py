"""What is visual in one forward call: placeholders, how they split into inputs, and their shapes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .encoder_activations import EncoderActivations
from .families.base import Family, InputFacts, Kind, VisualShape
from .feature_source import FeatureSource, input_lengths

logger = logging.getLogger(__name__)

#: Arguments with pixels, by kind. Video-LLaVA has its own name for images, until transformers 5.24.
_PIXELS: dict[Kind, tuple[str, ...]] = {
    "image": ("pixel_values", "pixel_values_images"),
    "video": ("pixel_values_videos",),
}
#: Argument with features that `generate` has computed beforehand, by kind.
_ENCODED = "mm_encoder_outputs"


def feeds_pictures(arguments: Mapping[str, Any]) -> bool:
    """Whether a call of a head or of `generate` is given pixels, or features computed beforehand."""
    pixels = (arguments.get(name) for names in _PIXELS.values() for name in names)
    return any(isinstance(value, Tensor) or bool(value) for value in (*pixels, arguments.get(_ENCODED)))


@dataclass(frozen=True)
class VisualInput:
    """The placeholders of one image or video.

    Attributes:
        row: in the batch.
        columns: (N,) int64, ascending, in this call's sequence; on the host.
        kind: image or video.
        shape: its layout.
        activations: what was captured of the encoder, and which of its inputs this is; None if nothing was, or if the
            features were computed before pruning was applied.
    """

    row: int
    columns: Tensor
    kind: Kind
    shape: VisualShape
    activations: tuple[EncoderActivations, int] | None = None


@dataclass
class VisualInputs:
    """What is visual in one forward call of the base model.

    Attributes:
        base: the base model.
        family: its facts.
        placeholders: by kind, (B, L) bool.
        lengths: by kind, features of each visual input, as soon as they are computed.
        sources: by kind, where the features came from, if that was noted.
        ids: (B, L) int64, what the sequence was embedded of; None if embeddings were fed.
        prompt_length: where a call feeds the answer so far as well, columns of the prompt; None: all is prompt.
    """

    base: Any
    family: Family
    placeholders: dict[Kind, Tensor]
    lengths: dict[Kind, list[int]] = field(default_factory=dict)
    sources: dict[Kind, FeatureSource] = field(default_factory=dict)
    ids: Tensor | None = None
    prompt_length: int | None = None

    @classmethod
    def of(
        cls,
        base: Any,
        family: Family,
        arguments: Mapping[str, Any],
        source_of: Callable[[Kind, Any], FeatureSource | None],
    ) -> VisualInputs | None:
        """What is visual in a base model's arguments, or None when it is fed no visual features.

        It is judged by the visual inputs, never by the length: continuations are longer than one token too, and a
        model may generate a placeholder's id.

        Args:
            base: the base model.
            family: its facts.
            arguments: of the call.
            source_of: where features of a kind that were computed beforehand came from.
        """
        encoded = arguments.get(_ENCODED) or {}
        fed = [
            kind
            for kind in family.kinds
            if any(arguments.get(name) is not None for name in _PIXELS[kind]) or encoded.get(kind) is not None
        ]
        if not fed:
            return None
        placeholders = {kind: _placeholders(base, family.placeholder(base.config, kind), arguments) for kind in fed}
        found = cls(base, family, placeholders, ids=arguments.get("input_ids"))
        for kind in fed:
            if encoded.get(kind) is not None:
                found.record_features(kind, encoded[kind], source_of(kind, encoded[kind]))
        for source in found.sources.values():
            found.prompt_length = source.generation.take()
        logger.debug("base model: %s are fed", " and ".join(f"{kind}s" for kind in fed))
        return found

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

    def record_features(self, kind: Kind, output: Any, source: FeatureSource | None) -> None:
        """Note the encoder output that fills the placeholders of a kind, and where it came from."""
        arguments = {} if source is None else source.arguments
        self.lengths[kind] = input_lengths(self.family, self.base.config, kind, output, arguments)
        if source is not None:
            self.sources[kind] = source

    def visual(self) -> Tensor:
        """(B, L) bool on the host, all placeholders."""
        return torch.stack(list(self._on_host.values())).any(0)

    @functools.cached_property
    def _on_host(self) -> dict[Kind, Tensor]:
        return {kind: mask.cpu() for kind, mask in self.placeholders.items()}

    def inputs(self) -> list[list[VisualInput]]:
        """The visual inputs of each row, in the order in which they stand in it."""
        batch = next(iter(self.placeholders.values())).shape[0]
        rows: list[list[VisualInput]] = [[] for _ in range(batch)]
        for kind, mask in self._on_host.items():
            found = _split(mask, self.lengths.get(kind))
            indices = _source_indices(found, batch, self.sources.get(kind))
            for (row, columns), index in zip(found, indices, strict=True):
                source = self.sources.get(kind) if index is not None else None
                arguments = {} if source is None else source.arguments
                facts = InputFacts(self.base.config, kind, len(columns), arguments, index or 0)
                captured = None if source is None or source.activations is None else (source.activations, index or 0)
                rows[row].append(VisualInput(row, columns, kind, self.family.shape(facts), captured))
        for row_inputs in rows:
            row_inputs.sort(key=lambda v: int(v.columns[0]))
        return rows


def _placeholders(base: Any, token: int, arguments: Mapping[str, Any]) -> Tensor:
    mask: Tensor
    if arguments.get("input_ids") is not None:
        mask = arguments["input_ids"] == token
        return mask
    # As transformers does it: only embeddings were given, so compare with the placeholder's.
    embeds = arguments["inputs_embeds"]
    mask = (embeds == base.get_input_embeddings()(torch.tensor(token, device=embeds.device))).all(-1)
    return mask


def _split(mask: Tensor, lengths: list[int] | None) -> list[tuple[int, Tensor]]:
    """Cut placeholders, on the host, into visual inputs, (row, columns) each, in the order in which features fill them.

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


def _source_indices(found: list[tuple[int, Tensor]], batch: int, source: FeatureSource | None) -> list[int | None]:
    """Index of each visual input among those its features were computed from; None where not known.

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
    done = [0] * batch
    indices: list[int | None] = []
    for row, _ in found:
        index = firsts[row // copies] + done[row]
        done[row] += 1
        indices.append(index if index < source.count else None)
    return indices
