"""What the pruned models have in common: selection behind the vision encoder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..device import index_rows
from ..policies.run import run_policy
from ..policies.spacing import evenly_spaced
from ..policies.types import Grid, Selection, VisualTokens
from .positions import pack
from .processing import BUDGET, QUESTION, TEXT, decoded
from .settings import Settings

logger = logging.getLogger(__name__)

Kind = Literal["image", "video"]


class Part(NamedTuple):
    """Visual inputs of one kind that go through the vision encoder together.

    Attributes:
        kind: image or video.
        arguments: for the stock model.
        grids: of each input, its raster.
        coordinates: of each input, (N, 3) int64 mRoPE coordinates of its tokens; None: it has none.
    """

    kind: Kind
    arguments: dict[str, Any]
    grids: list[Grid]
    coordinates: list[Tensor | None]


class PrunedModel:
    """Mixed in before a stock model of the engine: keeps what the policy chooses of each image or video.

    A subclass says how the arguments of `embed_multimodal` fall into parts and what raster each input has.
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
        # What the engine runs the tower on at once is counted in kept tokens; its memory goes with all of them.
        self.most_at_once = vllm_config.scheduler_config.max_num_batched_tokens

    def parts(self, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        """One call's arguments in parts of one kind, each of one input or of at most `most_at_once` tokens."""
        raise NotImplementedError

    def encoder_values(self, n: int) -> list[dict[str, Any]]:
        """Fields of `VisualTokens` that come from the encoder, of the `n` inputs that went through it last."""
        return [{} for _ in range(n)]

    def embed_multimodal(self, **kwargs: Any) -> Any:
        ours = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith("tokenprune_")}
        if not ours:  # nothing visual, or the engine's own dummy input
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        embeddings: list[Tensor] = []
        done = {"image": 0, "video": 0}
        for part in self.parts(kwargs):
            kind, whole = part.kind, list(super().embed_multimodal(**part.arguments))  # type: ignore[misc]
            words = [self._words(ours, kind, done[kind] + i) for i in range(len(whole))]
            budgets = ours[BUDGET.format(kind)][done[kind] : done[kind] + len(whole)]
            counts = [decoded(budget).count(len(each)) for budget, each in zip(budgets, whole, strict=True)]
            embeddings += self._keep(part, whole, words, counts)
            done[kind] += len(whole)
        return tuple(embeddings)

    def _words(self, ours: Mapping[str, Any], kind: Kind, i: int) -> dict[str, Tensor]:
        """The embedded text that a text-guided policy reads."""
        found = {}
        for field, name in (("text", TEXT), ("question", QUESTION)):
            ids = ours.get(name.format(kind))
            if ids is not None:
                table = self.language_model  # type: ignore[attr-defined]
                found[field] = table.embed_input_ids(ids[i].to(next(table.parameters()).device))
        return found

    def _keep(
        self, part: Part, whole: Sequence[Tensor], words: Sequence[Mapping[str, Any]], counts: Sequence[int]
    ) -> list[Tensor]:
        """The embeddings that the policy keeps of each input, coordinates beside them.

        Args:
            part: the inputs.
            whole: (N, D) embeddings of each.
            words: of each, the embedded text.
            counts: of each, how many are kept.
        """
        width = self.visual_width(whole[0])
        tokens = [
            VisualTokens(features=each[:, :width], grids=(grid,), kind=part.kind, **text, **encoder)
            for each, grid, text, encoder in zip(whole, part.grids, words, self.encoder_values(len(whole)), strict=True)
        ]
        kept = []
        for each, chosen, coordinates in zip(whole, self._choose(tokens, counts), part.coordinates, strict=True):
            rows = index_rows(each, chosen.indices)
            if chosen.features is not None:  # planes for deeper layers, behind the first, stay the tokens' own
                rows = torch.cat([chosen.features.to(each.dtype), rows[:, width:]], 1)
            if coordinates is not None:
                packed = pack(index_rows(coordinates, chosen.indices).to(rows.device), rows.dtype)
                rows = torch.cat([rows, packed], 1)
            kept.append(rows)
        return kept

    def _choose(self, tokens: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        """The policy's choice. An input that it fails on keeps evenly spaced tokens, so that the engine goes on."""
        try:
            return run_policy(self.settings.policy, tokens, counts, self.settings.per_frame)
        except Exception as error:
            if len(tokens) > 1:
                return [self._choose([each], [k])[0] for each, k in zip(tokens, counts, strict=True)]
            n, k = len(tokens[0]), counts[0]
            logger.error("policy %r failed, so %d of %d tokens are kept evenly: %s", self.settings.name, k, n, error)
            return [Selection(evenly_spaced(k, n))]

    def visual_width(self, embedding: Tensor) -> int:
        """Columns of an embedding that are the visual token; others go to deeper layers."""
        return embedding.shape[1]
