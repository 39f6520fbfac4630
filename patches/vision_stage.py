"""Vision-stage pruning: which columns of a batch stay, between projector and language model, and the report of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..adaptive_budget import AdaptiveBudget
from ..device import index_each_row, index_rows, to_device
from ..policies.run import run_policy
from ..policies.types import Selection, VisualTokens
from ..stopwatch import Stopwatch
from .cache import cache_among
from .call import guarded, unchanged
from .config import PruningConfig
from .decoder_call import DecoderInput
from .encoder_values import encoder_values, kept_in_encoder
from .masks import padding_mask, refuse_packed, refuse_windows
from .packing import Packing
from .report import Record
from .vision_selection import VisionSelection
from .visual_inputs import VisualInput, VisualInputs

logger = logging.getLogger(__name__)

_NONE = torch.empty(0, dtype=torch.int64)


def select_tokens(
    config: PruningConfig, visual: VisualInputs, embeds: Tensor, arguments: Mapping[str, Any]
) -> VisionSelection:
    """Ask the policy about all visual inputs of a batch.

    Args:
        config: of the pruning.
        visual: what is visual in the batch.
        embeds: (B, L, D), what the text model was to be fed.
        arguments: of the text model, with the caller's attention mask.

    Raises:
        ValueError: for a batch that pruning cannot follow, or an answer of the policy that is not as it should be.
    """
    batch, length = embeds.shape[:2]
    given = arguments.get("attention_mask")
    mask: Tensor | None = None
    refusal: ValueError | None = None
    try:
        mask = padding_mask(given, cache_among(arguments), batch, length)
        mask = None if mask is None else mask.to(embeds.device)
    except ValueError as error:  # the padding does not matter where nothing leaves
        refusal = error
    not_padding = torch.ones(batch, length, dtype=torch.bool) if mask is None else mask[:, -length:].cpu()
    work = _Work(config, embeds, not_padding, not_padding & visual.in_prompt(length))
    inputs = work.plan(visual)
    if any(work.may_lose_tokens(each) for each in inputs):
        if refusal is not None:
            raise refusal
        refuse_windows(given)
        refuse_packed(arguments, config.text, config.family.positions)
    return work.select(inputs, mask)


@dataclass
class _Input:
    """One visual input on its way to the policy; without `tokens` and `fixed`, all of it stays.

    Attributes:
        visual: its placeholders.
        i: which it is among the row's visual inputs.
        tokens: what the policy sees.
        n_keep: how many it is to keep.
        candidates: (N,) indices within the input of `tokens`.
        newlines: newline tokens that stay.
        fixed: no policy call: keep the candidates, which survived the encoder stage.
        visible: (N,) bool, False where the attention mask hides a token; None: none is hidden.
        kept: (K,) indices of what stays.
    """

    visual: VisualInput
    i: int
    tokens: VisualTokens | None = None
    n_keep: int | None = None
    candidates: Tensor = field(default_factory=lambda: _NONE)
    newlines: Tensor = field(default_factory=lambda: _NONE)
    fixed: bool = False
    visible: Tensor | None = None
    kept: Tensor = field(default_factory=lambda: _NONE)

    @property
    def all_visible(self) -> Tensor:
        """Indices in the input of the tokens that no mask hides."""
        return torch.arange(len(self.visual.columns)) if self.visible is None else self.visible.nonzero()[:, 0]


class _Work:
    """One batch while it is selected from."""

    def __init__(self, config: PruningConfig, embeds: Tensor, not_padding: Tensor, prompt: Tensor):
        self.config, self.embeds, self.not_padding, self.prompt = config, embeds, not_padding, prompt
        self.policy = None if config.vision is None else config.vision.policy
        self.keep_mask = torch.ones_like(not_padding)
        self._replaced = False

    def plan(self, visual: VisualInputs) -> list[_Input]:
        """What is to be done with each visual input; those that a mask hides are left out."""
        words, found = self._words(visual), []
        for row in visual.inputs():
            index = 0
            for i, each in enumerate(row):
                planned = self._plan(each, i, index, words[each.row])
                if planned is not None:
                    found.append(planned)
                grid = each.shape.grids[0] if each.shape.grids else (1, 1, 1)
                index += grid[0]
        return found

    def may_lose_tokens(self, each: _Input) -> bool:
        """Whether tokens of an input may leave, here or in the decoder."""
        return each.tokens is not None or each.fixed or self._is_cut_in_decoder(len(each.all_visible))

    def _is_cut_in_decoder(self, n: int) -> bool:
        """Whether the decoder stage may cut an input of `n` tokens; not where its budget is all of them."""
        return self.config.decoder is not None and self.config.decoder.drops(n)

    def _words(self, visual: VisualInputs) -> list[dict[str, Tensor]]:
        """Per row, the fields of `VisualTokens` that hold its text; none where the policy does not read it."""
        vision = self.config.vision
        if vision is None or "text" not in vision.policy.needs or vision.budget.keeps_all:
            return [{} for _ in self.keep_mask]
        placeholders = visual.visual()
        text = ~placeholders & self.prompt
        after = text & (placeholders.flip(1).cumsum(1).flip(1) == 0)
        after = torch.where(after.any(1, keepdim=True), after, text)
        questions = [row.nonzero()[:, 0] for row in after]
        words = {
            "text": index_each_row(self.embeds, [row.nonzero()[:, 0] for row in text]),
            "question": index_each_row(self.embeds, questions),
        }
        if visual.ids is not None and visual.ids.shape == text.shape:
            words["question_ids"] = index_each_row(visual.ids.to(self.embeds.device), questions)
        return [dict(zip(words, row, strict=True)) for row in zip(*words.values(), strict=True)]

    def _plan(self, visual: VisualInput, i: int, index: int, words: Mapping[str, Any]) -> _Input | None:
        """What is to be done with one input; None where a mask hides all of it."""
        columns, survivors = visual.columns, kept_in_encoder(self.config, visual)
        visible: Tensor | None = self.not_padding[visual.row, columns]
        n = int(visible.sum())  # type: ignore[union-attr]
        if n == 0:
            return None
        visible = None if n == len(columns) else visible
        n_keep = n if self.config.vision is None else self.config.vision.budget.count(n)
        if survivors is None and (self.policy is None or (n_keep is not None and n_keep >= n)):
            return _Input(visual, i, visible=visible)
        # Newline tokens leave first; they come back only if the budget exceeds the picture.
        candidate = torch.ones(len(columns), dtype=torch.bool)
        candidate[list(visual.shape.separators)] = False
        candidates = candidate.nonzero()[:, 0]
        newlines = (~candidate if visible is None else ~candidate & visible).nonzero()[:, 0]
        offered = survivors  # which of the candidates; None: all
        if visible is not None:
            offered = torch.arange(len(candidates)) if survivors is None else survivors
            offered = offered[visible[candidates[offered]]]
        if offered is not None:
            candidates = candidates[offered]
        spare = 0 if n_keep is None else max(0, n_keep - len(candidates))
        if self.policy is None or (offered is not None and n_keep is not None and n_keep >= len(candidates)):
            spare = 0 if self.policy is None or survivors is not None else spare
            return _Input(visual, i, candidates=candidates, newlines=newlines[:spare], fixed=True, visible=visible)
        tokens = VisualTokens(
            features=index_rows(self.embeds[visual.row], columns[candidates]),
            grids=visual.shape.grids if offered is None else None,
            tile_borders=visual.shape.tile_borders if offered is None else None,
            kind=visual.kind,
            index=index,
            **words,
            **encoder_values(self.config, visual, len(candidates), offered, self.embeds.device),
        )
        if self.config.vision is not None and isinstance(self.config.vision.budget, AdaptiveBudget):
            with guarded():
                n_keep = self.config.vision.budget.checked(tokens.features)
            if n_keep == len(candidates):
                return _Input(visual, i, candidates=candidates, newlines=newlines, fixed=True, visible=visible)
        n_keep = None if n_keep is None else n_keep - spare
        return _Input(visual, i, tokens, n_keep, candidates, newlines[:spare], visible=visible)

    def select(self, inputs: list[_Input], mask: Tensor | None) -> VisionSelection:
        """Ask the policy about all inputs at once, and put together what stays."""
        asked = [each for each in inputs if each.tokens is not None]
        watch = Stopwatch(self.embeds.device)
        if asked:
            assert self.policy is not None
            with unchanged(self.embeds, self.policy.label):
                answers = run_policy(
                    self.policy,
                    [each.tokens for each in asked if each.tokens is not None],
                    [each.n_keep for each in asked],
                )
            for each, chosen in zip(asked, answers, strict=True):
                each.kept = self._keep(each, chosen)
        for each in inputs:
            if each.fixed:
                each.kept = self._keep(each, Selection(torch.arange(len(each.candidates))))
            elif each.tokens is None:
                each.kept = each.all_visible
        elapsed = watch.ms()  # `run_policy` has waited for the device
        total, n_layers = sum(len(each.visual.columns) for each in asked) or 1, len(self.config.text.layers)
        records = [_record(each, elapsed / total, n_layers) for each in inputs]
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("vision stage: kept %s tokens", [f"{r.n_after} of {r.n_before}" for r in records])
        packing_cpu = None if bool(self.keep_mask.all()) else Packing.of(self.keep_mask, self.not_padding)
        packing = None if packing_cpu is None else packing_cpu.to(self.embeds.device)
        return VisionSelection(
            embeds=self.embeds,
            mask=mask,
            keep_mask=self.keep_mask,
            not_padding=self.not_padding,
            prompt=self.prompt,
            records=records,
            packing_cpu=packing_cpu,
            packing=packing,
            pruned_embeds=self.embeds if packing is None else packing.take(self.embeds),
            decoder_inputs=self._decoder_inputs(inputs, records, packing_cpu),
        )

    def _keep(self, each: _Input, chosen: Selection) -> Tensor:
        """Mark what stays of one input; its indices."""
        columns, row = each.visual.columns, each.visual.row
        kept = each.candidates[chosen.indices]
        if chosen.features is not None:
            self._replace(row, columns[kept], chosen.features)
        keep = torch.zeros(len(columns), dtype=torch.bool)
        keep[torch.cat([kept, each.newlines])] = True
        gone = ~keep if each.visible is None else ~keep & each.visible
        self.keep_mask[row, columns[gone]] = False
        return keep.nonzero()[:, 0]

    def _replace(self, row: int, columns: Tensor, features: Tensor) -> None:
        if not self._replaced:
            self.embeds, self._replaced = self.embeds.clone(), True
        self.embeds[row, to_device(columns, self.embeds.device)] = features.to(self.embeds)

    def _decoder_inputs(
        self, inputs: Sequence[_Input], records: Sequence[Record], packing: Packing | None
    ) -> list[list[DecoderInput]]:
        """Per row, where the decoder has the visual tokens that were kept."""
        rows: list[list[DecoderInput]] = [[] for _ in range(len(self.keep_mask))]
        acting, cuts = self.config.decoder, self.config.cuts
        if acting is None or cuts is None:
            return rows
        new_columns = None if packing is None else packing.inverse_index(self.keep_mask.shape[1])
        for i, (each, record) in enumerate(zip(inputs, records, strict=True)):
            if self._is_cut_in_decoder(record.n_before):
                columns = each.visual.columns[each.kept]
                columns = columns if new_columns is None else new_columns[record.sample, columns]
                left = acting.counts(cuts, record.n_before, len(columns))
                counts = dict(zip(cuts.layers, left, strict=True))
                rows[record.sample].append(DecoderInput(i, columns, record.indices, left[-1], len(columns), counts))
        return rows


def _record(each: _Input, ms_per_token: float, n_layers: int) -> Record:
    """The report of an input; selecting took so long for each token of those that the policy was asked about."""
    shape, indices = each.visual.shape, each.kept.tolist()
    record = Record(
        sample=each.visual.row,
        visual=each.i,
        kind=each.visual.kind,
        n_before=len(each.all_visible),
        n_after=len(indices),
        indices=indices,
        grid=shape.grids[0] if shape.grids is not None and len(shape.grids) == 1 else None,
        grids=shape.grids,
        select_ms=0.0,
        separators=shape.separators,
        n_layers=n_layers,
        kept_after=_kept_after(each),
    )
    activations, index = each.visual.activations or (None, 0)
    for stage, by_input in {} if activations is None else activations.select_ms.items():
        record = record.with_time(stage, by_input[index])
    return record if each.tokens is None else record.with_time("vision", ms_per_token * len(each.visual.columns))


def _kept_after(each: _Input) -> dict[str, list[int]]:
    """By stage before this one at which some left, indices within the input of what stayed."""
    activations, index = each.visual.activations or (None, 0)
    if activations is None or not activations.kept:
        return {}
    candidate = torch.ones(len(each.visual.columns), dtype=torch.bool)
    candidate[list(each.visual.shape.separators)] = False
    found = {}
    for stage, by_input in activations.kept.items():
        kept = torch.zeros_like(candidate).masked_scatter_(candidate, by_input[index])
        found[stage] = (kept if each.visible is None else kept & each.visible).nonzero()[:, 0].tolist()
    return found
