"""The selection for one batch, and the report of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..policies.base import select
from ..visual import Grid, VisualTokens
from .base import Kind
from .masks import padding_mask
from .request import Request, VisualInput

if TYPE_CHECKING:
    from .hooks import Pruner


@dataclass(frozen=True)
class Record:
    """What the last prefill did to one visual input.

    Attributes:
        sample: row in the batch.
        visual: index among the row's visual inputs.
        kind: `"image"` or `"video"`.
        n_before: visual tokens of the input, newline tokens included.
        n_after: visual tokens kept.
        indices: the kept ones, ascending, within this input.
        grid: (T, H, W) of its raster; None if it is made of several, or unknown.
        grids: all its rasters in order, newline tokens left out; None if unknown.
        select_ms: wall time of the policy on this input, milliseconds.
    """

    sample: int
    visual: int
    kind: Kind
    n_before: int
    n_after: int
    indices: list[int]
    grid: Grid | None
    grids: tuple[Grid, ...] | None
    select_ms: float


class Plan:
    """The selection for one batch: which columns stay, with which features, and the report of it."""

    def __init__(self, pruner: Pruner, request: Request, embeds: Tensor, kwargs: Mapping[str, Any]):
        batch, length = embeds.shape[:2]
        self.pruner, self.embeds = pruner, embeds
        self.mask = padding_mask(kwargs.get("attention_mask"), kwargs.get("past_key_values"), batch, length)
        self.keep = torch.ones(batch, length, dtype=torch.bool, device=embeds.device)
        self.records: list[Record] = []
        self._replaced = False
        text = None
        if "text" in pruner.policy.needs:
            text = ~request.visual().to(embeds.device)
            text = text if self.mask is None else text & self.mask[:, -length:]
        for row in request.inputs():
            index = 0
            for i, visual in enumerate(row):
                self._prune(visual, i, index, None if text is None else embeds[visual.row, text[visual.row]])
                grid = visual.shape.grids[0] if visual.shape.grids else (1, 1, 1)
                index += grid[0]

    def _prune(self, visual: VisualInput, i: int, index: int, text: Tensor | None) -> None:
        n, columns = len(visual.columns), visual.columns
        n_keep = self.pruner.budget.count(n)
        started = time.perf_counter()
        if n_keep < n:
            # Newline tokens leave first; they come back only if the budget exceeds the picture.
            candidate = torch.ones(n, dtype=torch.bool, device=columns.device)
            candidate[list(visual.shape.separators)] = False
            places = candidate.nonzero()[:, 0]
            extra = (~candidate).nonzero()[: max(0, n_keep - len(places)), 0]
            tokens = VisualTokens(
                features=self.embeds[visual.row, columns[places]],
                grids=visual.shape.grids,
                kind=visual.kind,
                index=index,
                text=text,
                **self._encoder_values(visual, len(places)),
            )
            chosen = select(self.pruner.policy, tokens, n_keep - len(extra))
            kept = places[chosen.indices]
            if chosen.features is not None:
                self._replace(visual.row, columns[kept], chosen.features)
            stays = torch.zeros(n, dtype=torch.bool, device=columns.device)
            stays[torch.cat([kept, extra])] = True
            self.keep[visual.row, columns[~stays]] = False
            indices = stays.nonzero()[:, 0].tolist()
        else:
            indices = list(range(n))
        grids = visual.shape.grids
        self.records.append(
            Record(
                sample=visual.row,
                visual=i,
                kind=visual.kind,
                n_before=n,
                n_after=len(indices),
                indices=indices,
                grid=grids[0] if grids is not None and len(grids) == 1 else None,
                grids=grids,
                # .tolist() above has waited for the device
                select_ms=(time.perf_counter() - started) * 1e3,
            )
        )

    def _encoder_values(self, visual: VisualInput, n: int) -> dict[str, Any]:
        """Fields of `VisualTokens` that come from the vision encoder."""
        if self.pruner.policy.encoder() is None:
            return {}
        if visual.heard is None:
            raise ValueError(
                f"policy {self.pruner.policy.name!r} reads the vision encoder, but these features were computed "
                "without it listening; pass pixel values, or compute the features with pruning applied"
            )
        heard, place = visual.heard
        values: dict[str, Any] = {}
        for name in ("attention", "keys", "features"):
            of_inputs = getattr(heard, name)
            if of_inputs is not None:
                values[f"encoder_{name}"] = of_inputs[place]
                if len(of_inputs[place]) != n:
                    raise ValueError(f"the encoder gave {len(of_inputs[place])} {name} for {n} visual tokens")
        if "encoder_features" in values:
            encoder = self.pruner.family.encoder
            values["project"] = self.pruner.base.get_submodule(encoder.projector)  # type: ignore[union-attr, arg-type]
        return values

    def _replace(self, row: int, columns: Tensor, features: Tensor) -> None:
        if not self._replaced:
            self.embeds, self._replaced = self.embeds.clone(), True
        self.embeds[row, columns] = features.to(self.embeds.dtype)
