"""What is visual in one forward call: placeholders, how they split into inputs, and their shapes."""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..cache import cache_among
from .base import Family, Kind, VisualShape
from .encoder import EncoderListener, Heard
from .tower import TowerStage

# Video-LLaVA has its own name for images, until transformers 5.24.
_PIXELS: dict[Kind, tuple[str, ...]] = {
    "image": ("pixel_values", "pixel_values_images"),
    "video": ("pixel_values_videos",),
}
_SOURCE = "_tokenprune_source"  # set on encoder outputs; they outlive the call that made them
#: The base models whose feature functions run in this thread, from the outside in.
_TAPPED: ContextVar[tuple[Any, ...]] = ContextVar("tokenprune_tapped", default=())


@dataclass(frozen=True)
class Source:
    """Where visual features came from: how many inputs, the arguments of the feature function, and what
    a policy wanted to hear of the encoder meanwhile."""

    count: int
    arguments: Mapping[str, Any]
    heard: Heard | None = None
    last: LastPrompt = field(default_factory=lambda: LastPrompt())


@dataclass
class LastPrompt:
    """What features were last fed with, without a KV cache.

    Attributes:
        ids: (B, L) of the prompt; None before the first call.
        length: of the last call: the prompt and the answer so far.
    """

    ids: Tensor | None = None
    length: int = 0

    def follow(self, ids: Tensor) -> int:
        """Length of the prompt in a call's ids: those of the last call and one token more go on with its answer."""
        goes_on = (
            self.ids is not None
            and ids.shape[1] == self.length + 1
            and len(ids) == len(self.ids)
            and torch.equal(ids[:, : self.ids.shape[1]], self.ids)
        )
        if self.ids is None or not goes_on:
            self.ids = ids
        self.length = ids.shape[1]
        return self.ids.shape[1]


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
    prompt_length: int | None = None  # of a call that goes on with an answer, without a KV cache; None: all of it

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
        ids = call.get("input_ids")
        if request.sources and ids is not None and cache_among(call) is None:
            # As `generate` does with use_cache=False: it feeds the prompt again with the answer so far.
            request.prompt_length = next(iter(request.sources.values())).last.follow(ids)
        return request

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


def _copied(one: Any, other: Any) -> bool:
    """Whether containers hold the same features: the very tensors, or equal ones on another device."""
    left, right = (tree_leaves(getattr(output, "pooler_output", output)) for output in (one, other))
    return len(left) == len(right) and all(
        a is b or (a.device != b.device and a.dtype == b.dtype and torch.equal(a.to(b.device), b))
        for a, b in zip(left, right, strict=True)
    )


def _placeholders(base: Any, kind: Kind, call: Mapping[str, Any]) -> Tensor:
    token = getattr(base.config, f"{kind}_token_id")
    if call.get("input_ids") is not None:
        return call["input_ids"] == token
    # As transformers does it: only embeddings were given, so compare with the placeholder's.
    embeds = call["inputs_embeds"]
    return (embeds == base.get_input_embeddings()(torch.tensor(token, device=embeds.device))).all(-1)


def feature_lengths(output: Any) -> list[int]:
    """Number of features of each visual input; empty where the container does not tell.

    Of each tile, picture or row of the batch, as the model returns them.
    """
    features = getattr(output, "pooler_output", output)
    if isinstance(features, (list, tuple)) and features and isinstance(features[0], (list, tuple)):
        features = features[0]  # (features per input, deepstack planes), transformers 4
    if isinstance(features, Tensor):
        return [features.shape[1:-1].numel()] * len(features) if features.ndim in (3, 4) else []
    if all(isinstance(f, Tensor) for f in features):  # (N, D), or (frames, N, D) of a video
        return [f.shape[:-1].numel() for f in features]
    return []


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


class FeatureTap:
    """Stands in for `get_image_features` or `get_video_features` of one instance, and only listens.

    `generate` encodes pictures before it calls the model and drops their grids on the way, so they
    are noted on the encoder's output. An object, not a closure, so that a deep copy of the model
    calls its own features.
    """

    def __init__(
        self,
        base: Any,
        kind: Kind,
        original: Callable[..., Any],
        listener: Callable[[Kind, Any, Source], None],
        lengths: Callable[[list[int]], list[int]],
        encoder: EncoderListener | None = None,
        tower: TowerStage | None = None,
    ):
        functools.update_wrapper(self, original)  # generate() reads the signature
        self.base, self.kind, self.original, self.listener, self.lengths = base, kind, original, listener, lengths
        self.encoder, self.tower = encoder, tower
        self._noted: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by id, what has a note

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        running = _TAPPED.get()
        if self.base in running:  # Qwen3-VL encodes videos through its image function: the outer call counts
            return self.original(*args, **kwargs)
        token = _TAPPED.set((*running, self.base))
        try:
            return self._listen(*args, **kwargs)
        finally:
            _TAPPED.reset(token)

    def _listen(self, *args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(self.original).bind_partial(*args, **kwargs).arguments
        arguments = {**arguments, **arguments.pop("kwargs", {})}
        # Not the pixels: what is noted here lives as long as the features do. Sizes and grids are read one by one.
        arguments = {
            name: value.cpu() if isinstance(value, Tensor) and value.dtype == torch.int64 else value
            for name, value in arguments.items()
            if not name.startswith("pixel_values")
        }
        with contextlib.ExitStack() as stack:
            notes = None if self.encoder is None else stack.enter_context(self.encoder.listening(arguments))
            cut = None if self.tower is None else stack.enter_context(self.tower.cutting())
            output = self.original(*args, **kwargs)
        lengths = self.lengths(feature_lengths(output))
        heard = None
        if self.encoder is not None and notes is not None:
            whole = {} if cut is None else {"whole": cut.whole}
            heard = self.encoder.heard(notes, self.kind, lengths, arguments, **whole)
        if self.tower is not None and cut is not None:
            heard = self.tower.heard(cut, heard or Heard(), self.kind, lengths, arguments)
        source = Source(len(lengths), arguments, heard)
        if not isinstance(output, (Tensor, list, tuple)):
            setattr(output, _SOURCE, source)
            self._noted[id(output)] = output
        self.listener(self.kind, output, source)
        return output

    def source_of(self, output: Any) -> Source | None:
        """Where features that were computed beforehand came from; None if that was without pruning.

        What carries them to the model's device (`generate`, accelerate) makes a new container of them, without the
        note: then it is that of the features they were copied from.
        """
        if not hasattr(output, _SOURCE):
            output = next((noted for noted in list(self._noted.values()) if _copied(noted, output)), None)
        return getattr(output, _SOURCE, None)
