"""The selection for one batch, and the report of it."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..device import index_rows, to_device
from ..policies.base import Policy, select
from ..policies.types import Selection, VisualTokens
from .cache import cache_among
from .call import guarded
from .decoder_stage import DeepInput
from .masks import padding_mask, refuse_packed, refuse_windows
from .packing import Packing
from .report import Record
from .visual_inputs import Request, VisualInput

if TYPE_CHECKING:
    from .pruner import Pruner


@dataclass
class _Job:
    """One visual input on its way to the policy; without `tokens`, all of it stays."""

    visual: VisualInput
    i: int  # among the row's visual inputs
    tokens: VisualTokens | None = None
    n_keep: int | None = None
    places: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # of `tokens` in the input
    extra: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # newline tokens that stay
    indices: Tensor | None = None  # what stays
    stays: bool = False  # `places` stay, whatever a policy would say: the rest left in the vision tower
    visible: Tensor | None = None  # (N,) bool, False where the attention mask hides a token; None: all are seen

    @property
    def seen(self) -> Tensor:
        """Places in the input of the tokens that are seen."""
        return torch.arange(len(self.visual.columns)) if self.visible is None else self.visible.nonzero()[:, 0]


@contextlib.contextmanager
def unchanged(embeds: Tensor, policy: Policy) -> Iterator[None]:
    """Around a policy's choice: raise `ValueError` if it has changed the model's embeddings in place."""
    version = None if embeds.is_inference() else embeds._version
    with guarded():
        yield
    if version is not None and embeds._version != version:
        raise ValueError(f"policy {policy.label!r} must not change tokens.features in place; return new features")


class Plan:
    """The selection for one batch: which columns stay, with which features, and the report of it.

    All bookkeeping is done on the host, so that the device is waited for once per batch, not per picture.

    Attributes:
        embeds: (B, L, D), replaced ones included.
        mask: (B, P + L) bool padding mask, or None.
        stays: (B, L) bool on the host, False at pruned columns.
        records: the report.
    """

    def __init__(self, pruner: Pruner, request: Request, embeds: Tensor, kwargs: Mapping[str, Any]):
        batch, length = embeds.shape[:2]
        self.pruner, self.embeds = pruner, embeds
        given = kwargs.get("attention_mask")
        self.mask: Tensor | None = None
        refusal: ValueError | None = None
        try:
            mask = padding_mask(given, cache_among(kwargs), batch, length)
            self.mask = None if mask is None else mask.to(embeds.device)
        except ValueError as error:  # nobody has to read it where nothing leaves
            refusal = error
        self.stays = torch.ones(batch, length, dtype=torch.bool)
        self.records: list[Record] = []
        self._replaced = False
        self._columns: list[Tensor] = []  # of each record's input, those that stay
        self._in_prompt = request.in_prompt(length)
        words = self._words(request)
        jobs: list[_Job] = []
        for row in request.inputs():
            index = 0
            for i, visual in enumerate(row):
                job = self._job(visual, i, index, words[visual.row])
                if job is not None:
                    jobs.append(job)
                grid = visual.shape.grids[0] if visual.shape.grids else (1, 1, 1)
                index += grid[0]
        if any(self._may_shrink(job) for job in jobs):
            if refusal is not None:
                raise refusal
            refuse_windows(given)
            refuse_packed(kwargs, pruner.text, pruner.family.positions)
        self._select(jobs)

    def _may_shrink(self, job: _Job) -> bool:
        """Whether tokens of an input may leave, here or in the decoder."""
        deep, n = self.pruner.deep_budget, len(job.seen)
        return job.tokens is not None or job.stays or (deep is not None and self._cut_deep(n))

    def _cut_deep(self, n: int) -> bool:
        """Whether an input of `n` tokens is offered to the decoder stage; not where its budget is all of them."""
        count = self.pruner.deep_budget.count(n)
        return count is None or count < n

    def _words(self, request: Request) -> list[dict[str, Tensor]]:
        """Per row, the fields of `VisualTokens` that hold its text; none where the policy does not read it."""
        policy = self.pruner.policy
        if policy is None or "text" not in policy.needs:
            return [{} for _ in self.stays]
        visual = request.visual()
        text = ~visual & self.asked
        after = text & (visual.flip(1).cumsum(1).flip(1) == 0)
        after = torch.where(after.any(1, keepdim=True), after, text)
        return [
            {"text": index_rows(row, all_of_it.nonzero()[:, 0]), "question": index_rows(row, asked.nonzero()[:, 0])}
            for row, all_of_it, asked in zip(self.embeds, text, after, strict=True)
        ]

    @functools.cached_property
    def host_packing(self) -> Packing | None:
        """What is left of the batch, on the host; None where nothing is pruned."""
        return None if bool(self.stays.all()) else Packing.of(self.stays, self.real)

    @functools.cached_property
    def packing(self) -> Packing | None:
        """The same on the device."""
        return None if self.host_packing is None else self.host_packing.to(self.embeds.device)

    @functools.cached_property
    def fed(self) -> Tensor:
        """(B, M, D), what the text model is fed."""
        return self.embeds if self.packing is None else self.packing.take(self.embeds)

    @functools.cached_property
    def asked(self) -> Tensor:
        """(B, L) bool on the host, False at padding and at an answer so far, which is no part of the question."""
        return self.real & self._in_prompt

    @functools.cached_property
    def real(self) -> Tensor:
        """(B, L) bool on the host, False at padding."""
        if self.mask is None:
            return torch.ones_like(self.stays)
        return self.mask[:, -self.stays.shape[1] :].cpu()

    def _job(self, visual: VisualInput, i: int, index: int, words: Mapping[str, Any]) -> _Job | None:
        """What the policy is asked about one input; nothing where all of it stays. None: nothing of it is seen."""
        columns = visual.columns
        policy, left = self.pruner.policy, self._left(visual)
        visible: Tensor | None = self.real[visual.row, columns]
        n = int(visible.sum())  # type: ignore[union-attr]
        if n == 0:
            return None
        visible = None if n == len(columns) else visible
        n_keep = n if policy is None else self.pruner.budget.count(n)
        if left is None and (policy is None or (n_keep is not None and n_keep >= n)):
            return _Job(visual, i, visible=visible)
        # Newline tokens leave first; they come back only if the budget exceeds the picture.
        candidate = torch.ones(len(columns), dtype=torch.bool)
        candidate[list(visual.shape.separators)] = False
        places = candidate.nonzero()[:, 0]
        newlines = (~candidate if visible is None else ~candidate & visible).nonzero()[:, 0]
        offered = left  # which of the candidates
        if visible is not None:
            offered = torch.arange(len(places)) if left is None else left
            offered = offered[visible[places[offered]]]
        if offered is not None:
            places = places[offered]
        if policy is None or (offered is not None and n_keep is not None and n_keep >= len(places)):
            spare = 0 if policy is None or n_keep is None or left is not None else n_keep - len(places)
            return _Job(visual, i, places=places, extra=newlines[:spare], stays=True, visible=visible)
        spare = 0 if n_keep is None else max(0, n_keep - len(places))
        tokens = VisualTokens(
            features=index_rows(self.embeds[visual.row], columns[places]),
            grids=visual.shape.grids if offered is None else None,
            kind=visual.kind,
            index=index,
            **words,
            **self._encoder_values(policy, visual, len(places), offered),
        )
        n_keep = None if n_keep is None else n_keep - spare
        return _Job(visual, i, tokens, n_keep, places, newlines[:spare], visible=visible)

    def _select(self, jobs: list[_Job]) -> None:
        """Ask the policy about all inputs at once, and note what stays."""
        asked = [job for job in jobs if job.tokens is not None]
        started = time.perf_counter()
        if asked:
            assert self.pruner.policy is not None
            with unchanged(self.embeds, self.pruner.policy):
                answers = select(
                    self.pruner.policy,
                    [job.tokens for job in asked if job.tokens is not None],
                    [job.n_keep for job in asked],
                )
            for job, chosen in zip(asked, answers, strict=True):
                job.indices = self._keep(job, chosen)
        for job in jobs:
            if job.stays:
                job.indices = self._keep(job, Selection(torch.arange(len(job.places))))
        elapsed = (time.perf_counter() - started) * 1e3  # `select` has waited for the device
        total = sum(len(job.visual.columns) for job in asked)
        for job in jobs:
            grids = job.visual.shape.grids
            kept = job.seen if job.indices is None else job.indices
            indices = kept.tolist()
            self._columns.append(job.visual.columns[kept])
            self.records.append(
                Record(
                    sample=job.visual.row,
                    visual=job.i,
                    kind=job.visual.kind,
                    n_before=len(job.seen),
                    n_after=len(indices),
                    indices=indices,
                    grid=grids[0] if grids is not None and len(grids) == 1 else None,
                    grids=grids,
                    select_ms=0.0 if job.tokens is None else elapsed * len(job.visual.columns) / total,
                    separators=job.visual.shape.separators,
                )
            )

    def _keep(self, job: _Job, chosen: Selection) -> Tensor:
        """Mark what stays of one input; its indices."""
        columns, row = job.visual.columns, job.visual.row
        kept = job.places[chosen.indices]
        if chosen.features is not None:
            self._replace(row, columns[kept], chosen.features)
        stays = torch.zeros(len(columns), dtype=torch.bool)
        stays[torch.cat([kept, job.extra])] = True
        gone = ~stays if job.visible is None else ~stays & job.visible
        self.stays[row, columns[gone]] = False
        return stays.nonzero()[:, 0]

    def deep_inputs(self) -> list[list[DeepInput]]:
        """Per row, where the decoder has the visual tokens that were kept."""
        rows: list[list[DeepInput]] = [[] for _ in range(len(self.stays))]
        budget = self.pruner.deep_budget
        assert budget is not None
        place = None if self.host_packing is None else self.host_packing.places(self.stays.shape[1])
        for i, (record, columns) in enumerate(zip(self.records, self._columns, strict=True)):
            if not self._cut_deep(record.n_before):
                continue
            places = columns if place is None else place[record.sample, columns]
            n_keep = min(budget.count(record.n_before), len(columns))
            rows[record.sample].append(DeepInput(i, places, record.indices, n_keep, len(columns)))
        return rows

    def _left(self, visual: VisualInput) -> Tensor | None:
        """(K,) places on the host, among the candidates, of those left behind the vision tower; None: all, or nothing
        acts there."""
        if self.pruner.tower is None or self.pruner.tower.budget.count(len(visual.columns)) >= len(visual.columns):
            return None
        if visual.heard is None:
            raise ValueError(
                f"policy {self.pruner.tower.policy!r} acts inside the vision tower, but these features were computed "
                "without it; pass pixel values, or compute the features with pruning applied"
            )
        heard, place = visual.heard
        return None if heard.left is None else heard.left[place].nonzero()[:, 0]

    def _encoder_values(self, policy: Policy, visual: VisualInput, n: int, left: Tensor | None) -> dict[str, Any]:
        """Fields of `VisualTokens` that come from the vision encoder, of the `n` tokens that are left."""
        if policy.encoder() is None:
            return {}
        if visual.heard is None:
            raise ValueError(
                f"policy {policy.name!r} reads the vision encoder, but these features were computed "
                "without it listening; pass pixel values, or compute the features with pruning applied"
            )
        heard, place = visual.heard
        values: dict[str, Any] = {}
        for name in ("attention", "keys", "features"):
            of_inputs = getattr(heard, name)
            if of_inputs is not None:
                value = of_inputs[place] if left is None else index_rows(of_inputs[place], left)
                values[f"encoder_{name}"] = value.to(self.embeds.device)  # the tower may have a device of its own
                if len(value) != n:
                    raise ValueError(f"the encoder gave {len(value)} {name} for {n} visual tokens")
        if "encoder_features" in values:
            encoder = self.pruner.family.encoder
            projector = self.pruner.base.get_submodule(encoder.projector)  # type: ignore[union-attr, arg-type]
            values["project"] = lambda merged: projector(merged).to(merged.device)
        return values

    def _replace(self, row: int, columns: Tensor, features: Tensor) -> None:
        if not self._replaced:
            self.embeds, self._replaced = self.embeds.clone(), True
        self.embeds[row, to_device(columns, self.embeds.device)] = features.to(self.embeds)
