"""What the pruned models have in common: selection behind the vision encoder."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..budget import Budget
from ..device import index_rows
from ..patches.families.base import InputFacts, Kind, VisualShape
from ..patches.families.registry import family_by_type
from ..policies.run import run_policy
from ..policies.spacing import evenly_spaced
from ..policies.types import Selection, VisualTokens
from . import failures
from .pieces import Piece
from .positions import pack
from .processing import BUDGET, KEPT, QUESTION, TEXT, decoded
from .settings import Settings

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """Visual inputs of one kind that go through the vision encoder together.

    Attributes:
        kind: image or video.
        n: how many the engine calls one.
        arguments: for the stock model.
        sizes: what the shape of each input is known from, by the names that `Family.shape` reads.
        coordinates: of each input, (N, 3) int64 mRoPE coordinates of its tokens; None: they have none.
    """

    kind: Kind
    n: int
    arguments: dict[str, Any]
    sizes: dict[str, Any]
    coordinates: list[Tensor] | None = None


class Asked(NamedTuple):
    """What is asked of one picture or video.

    Attributes:
        budget: how many tokens stay.
        words: the embedded text, for policies that read it.
        kept: (K,) indices of the tokens that stay, where a policy has chosen by pixels.
    """

    budget: Budget
    words: dict[str, Tensor]
    kept: Tensor | None


class NoTowerGraphs:
    """Mixed in before a stock model whose vision encoder may run as CUDA graphs: they would go past the selection."""

    def get_encoder_cudagraph_config(self) -> Any:
        return dataclasses.replace(super().get_encoder_cudagraph_config(), modalities=[])  # type: ignore[misc]


class PrunedModel:
    """Mixed in before a stock model of the engine: keeps what the policy chooses of each image or video.

    A subclass says how the arguments of `embed_multimodal` fall into parts.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        config = vllm_config.model_config
        settings = Settings.of(config.hf_config)
        multimodal = config.get_multimodal_config()
        if multimodal.is_multimodal_pruning_enabled():
            raise ValueError("--video-pruning-rate prunes once more what tokenprune prunes; leave one of them out")
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        if multimodal.enable_mm_embeds and settings.policy.encoder_spec() is not None:
            raise ValueError(
                f"policy {settings.name!r} reads the vision tower, and --enable-mm-embeds lets requests do without it; "
                "leave one of them out"
            )
        self.settings = settings
        self.family = family_by_type(config.hf_config.model_type).with_tower(config.hf_config)
        # What the engine runs the tower on at once is counted in kept tokens; its memory goes with all of them.
        self.most_at_once = vllm_config.scheduler_config.max_num_batched_tokens

    def parts(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        """One call's arguments in parts of one kind, each of one input or of at most `most_at_once` tokens."""
        raise NotImplementedError

    def lengths(self, part: Part, item: int, length: int) -> list[int]:
        """Tokens of each visual input that an item of the engine is made of, in order."""
        return [length]

    def encoder_values(self, part: Part, lengths: list[int]) -> list[dict[str, Any]]:
        """Fields of `VisualTokens` that come from the encoder, of each visual input of the part that went through it.

        Args:
            part: the last one.
            lengths: tokens of each visual input.
        """
        return [{} for _ in lengths]

    def embed_multimodal(self, **kwargs: Any) -> Any:
        ours = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith("tokenprune_")}
        if not ours:  # nothing visual, or the engine's own dummy input
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        embeddings: list[Tensor] = []
        done = {"image": 0, "video": 0}
        for part in self.parts(kwargs):
            asked = [self._asked(ours, part.kind, done[part.kind] + i) for i in range(part.n)]
            with self.tower_takes(part, asked):
                whole = list(super().embed_multimodal(**part.arguments))  # type: ignore[misc]
            embeddings += self._keep(part, whole, asked)
            done[part.kind] += part.n
        return tuple(embeddings)

    @contextmanager
    def tower_takes(self, part: Part, asked: Sequence[Asked]) -> Iterator[None]:
        """Run the vision tower on a part; on what a policy has chosen by pixels, where it has."""
        yield

    def _asked(self, ours: Mapping[str, Any], kind: Kind, i: int) -> Asked:
        kept = ours.get(KEPT.format(kind))
        return Asked(
            decoded(ours[BUDGET.format(kind)][i]), self._words(ours, kind, i), None if kept is None else kept[i]
        )

    def _words(self, ours: Mapping[str, Any], kind: Kind, i: int) -> dict[str, Tensor]:
        """The embedded text that a text-guided policy reads."""
        found = {}
        for field, name in (("text", TEXT), ("question", QUESTION)):
            ids = ours.get(name.format(kind))
            if ids is not None:
                table = self.language_model  # type: ignore[attr-defined]
                found[field] = table.embed_input_ids(ids[i].to(next(table.parameters()).device))
        return found

    def _keep(self, part: Part, whole: Sequence[Tensor], asked: Sequence[Asked]) -> list[Tensor]:
        """The embeddings that are kept of each item, coordinates beside them.

        Args:
            part: the items.
            whole: (N, D) embeddings of each.
            asked: what is asked of each.
        """
        width = self.visual_width(whole[0])
        pieces = self._pieces(part, whole, asked)
        values = self.encoder_values(part, [piece.length for piece in pieces])
        for piece, encoder in zip(pieces, values, strict=True):
            if piece.n_keep < piece.length:
                piece.offer(whole[piece.item][:, :width], part.kind, {**asked[piece.item].words, **encoder})
        undecided = [piece for piece in pieces if piece.tokens is not None]
        answers = self._choose(
            [each.tokens for each in undecided if each.tokens], [e.n_keep - e.spare for e in undecided]
        )
        chosen = dict(zip(map(id, undecided), answers, strict=True))
        kept: list[list[Tensor]] = [[] for _ in whole]
        for piece in pieces:
            each = whole[piece.item]
            fixed = asked[piece.item].kept
            answer = chosen.get(id(piece)) if fixed is None else Selection(fixed)
            indices, features = piece.kept(answer, each[:, :width])
            rows = index_rows(each, indices)
            if features is not None:  # planes for deeper layers, behind the first, stay the tokens' own
                rows = torch.cat([features.to(each.dtype), rows[:, width:]], 1)
            if part.coordinates is not None:
                coordinates = index_rows(part.coordinates[piece.item], indices).to(rows.device)
                rows = torch.cat([rows, pack(coordinates, rows.dtype)], 1)
            kept[piece.item].append(self.with_separators(rows, indices, piece))
        return [torch.cat(rows) if len(rows) > 1 else rows[0] for rows in kept]

    def with_separators(self, rows: Tensor, indices: Tensor, piece: Piece) -> Tensor:
        """The embeddings that a visual input sends to the language model.

        Args:
            rows: (K, D) of what is kept.
            indices: (K,) of it in the item.
            piece: the visual input.
        """
        return rows

    def _pieces(self, part: Part, whole: Sequence[Tensor], asked: Sequence[Asked]) -> list[Piece]:
        """The visual inputs of each item, with what is to stay of them."""
        pieces: list[Piece] = []
        for item, (each, (budget, _, kept)) in enumerate(zip(whole, asked, strict=True)):
            start = 0
            for length in self.lengths(part, item, len(each)):
                shape = self.shape(part, item, length)
                pieces.append(Piece(item, start, length, shape, length if kept is not None else budget.count(length)))
                start += length
        return pieces

    def shape(self, part: Part, item: int, length: int) -> VisualShape:
        """The layout of a visual input of an item."""
        config = self.config  # type: ignore[attr-defined]
        return self.family.shape(InputFacts(config, part.kind, length, part.sizes, item))

    def _choose(self, tokens: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        """The policy's choice. An input that it fails on keeps evenly spaced tokens, so that the engine goes on."""
        if not tokens:
            return []
        try:
            return run_policy(self.settings.policy, tokens, counts, self.settings.per_frame)
        except Exception as error:
            if len(tokens) > 1:
                return [self._choose([each], [k])[0] for each, k in zip(tokens, counts, strict=True)]
            n, k = len(tokens[0]), counts[0]
            failures.add()
            logger.error("policy %r failed, so %d of %d tokens are kept evenly: %s", self.settings.name, k, n, error)
            return [Selection(evenly_spaced(k, n))]

    def visual_width(self, embedding: Tensor) -> int:
        """Columns of an embedding that are the visual token; others go to deeper layers."""
        return embedding.shape[1]


def chunks(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of stretches that sum to `most` at most, or hold one."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and total + size > most:
            yield start, i
            start, total = i, 0
        total += size
    if len(sizes) > start:
        yield start, len(sizes)
