"""A picture under a setting: what the policy kept of it, and what the model answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..patches import Record
from .answers import question_inputs
from .pictures import (
    DARK,
    EARLY,
    EARLY_SHARE,
    FRAME,
    HALF,
    dim,
    encoded_indices,
    fitted,
    framed,
    kept_indices,
    masks,
    model_crop,
    tinted,
)
from .setting import PruningSetting

_WIDTH = 640  # of an image, pixels
_SHADE = 225  # grey of a bright patch in the legend


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    Attributes:
        image: in RGB.
        text: the question.
        expected: the right answer, exactly; None if it is unknown.
        source: file of the image, or what it is.
    """

    image: Image.Image
    text: str
    expected: str | None = None
    source: str = ""


@dataclass(frozen=True)
class Panel:
    """One image under one setting.

    Attributes:
        setting: policies and keep ratio.
        picture: uint8 (height, width, 3): dark where tokens were dropped before the decoder, and blue if that was
            before or inside the vision encoder; half dark where only lower decoder layers hold them, framed where they
            were merged with dropped ones.
        answer: the model's.
        expected: the right answer; None if it is unknown.
        correct: whether the answer is the right one; None if that is unknown.
        record: what became of the image's tokens; None for the full model.
        mean: visual tokens, a mean over decoder layers.
        n_before: visual tokens of the image.
        merged: indices of kept tokens that were merged with dropped ones.
    """

    setting: PruningSetting
    picture: np.ndarray
    answer: str
    expected: str | None
    correct: bool | None
    record: Record | None
    mean: float
    n_before: int
    merged: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """The setting: `divprune 0.25`."""
        return "full model" if self.setting.is_full else str(self.setting)

    @property
    def kept(self) -> str:
        """How many tokens stay: `14 of 144`, or `14 of 144 at the end, 46 in the mean` if the decoder drops some, with
        `36 after pixels` if some leave before the vision encoder."""
        if self.record is None:
            return f"all {self.n_before} tokens"
        parts = [f"{len(kept_indices(self.record))} of {self.n_before}{' at the end' if self.record.cuts else ''}"]
        early = self.record.kept_after.items()
        parts += [f"{len(kept)} after {stage}" for stage, kept in early if len(kept) > self.record.n_after]
        parts += [f"{self.mean:.0f} in the mean"] if self.record.cuts else []
        return ", ".join(parts)


@dataclass(frozen=True)
class LegendPart:
    """An entry of a legend: a patch of a colour, perhaps with a frame, or a mark.

    Attributes:
        text: what it means.
        swatch: colour of the patch, `#rrggbb`; empty: none.
        frame: colour of its frame; empty: none.
        mark: a character; empty: none.
        style: `right` or `wrong`, of the mark.
    """

    text: str
    swatch: str = ""
    frame: str = ""
    mark: str = ""
    style: str = ""


Legend = list[LegendPart]


def legend(panels: Sequence[Panel]) -> Legend:
    """What brightness, frames and marks mean, as far as they occur."""
    records = [panel.record for panel in panels if panel.record is not None]
    bright, half, dark = (_hex([int(_SHADE * light)] * 3) for light in (1, HALF, DARK))
    parts = [LegendPart("bright: kept", bright)]
    if any(record.cuts and len(record.cuts[-1].indices) < record.n_after for record in records):
        parts.append(LegendPart("half dark: only in the lower layers of the decoder", half))
    encoded = [len(encoded_indices(record)) for record in records]
    if any(record.n_after < n for record, n in zip(records, encoded, strict=True)):
        parts.append(LegendPart("dark: dropped before the decoder", dark))
    if any(n < record.n_before for record, n in zip(records, encoded, strict=True)):
        grey = [int((1 - EARLY_SHARE) * DARK * _SHADE + EARLY_SHARE * part) for part in EARLY]
        parts.append(LegendPart("dark blue: dropped before or inside the vision encoder", _hex(grey)))
    if any(panel.merged for panel in panels):
        parts.append(LegendPart("framed: kept, and merged with dropped tokens", bright, _hex(FRAME)))
    if any(panel.correct is not None for panel in panels):
        parts.append(LegendPart("right answer", mark="✓", style="right"))
        parts.append(LegendPart("wrong answer", mark="✗", style="wrong"))
    return parts


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)


class Viewer:
    """Asks one model about pictures, under one setting after another."""

    def __init__(self, model: Any, processor: Any, new_tokens: int):
        """
        Args:
            model: of a supported family, not pruned.
            processor: its processor.
            new_tokens: longest answer.
        """
        self._model, self._processor, self._new_tokens = model, processor, new_tokens
        self._full: tuple[Question, Tensor, Tensor] | None = None

    @torch.inference_mode()
    def look(self, question: Question, setting: PruningSetting) -> Panel:
        """Ask a question under a setting. Merged tokens are found if the full model was asked the same just before.

        Raises:
            ValueError: the family's token grid is unknown, so that kept tokens cannot be drawn.
        """
        model = self._model
        inputs = question_inputs(model, self._processor, question.image, question.text)
        with setting.context(model), _first_layer_inputs(model) as entered:
            tokens = model.generate(**inputs, max_new_tokens=self._new_tokens, do_sample=False)
            records = setting.records(model)
        answer = self._processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        picture = np.asarray(_enlarged(model_crop(question.image, self._processor)))
        visual = _visual_columns(model, inputs["input_ids"][0])
        correct = None if question.expected is None else answer == question.expected
        record = records[0] if records else None
        merged: tuple[int, ...] = ()
        if record is None:
            if setting.is_full and entered:
                self._full = question, entered[0], visual
        else:
            merged = self._merged(question, setting, record, entered)
            picture = _drawn(picture, record, merged)
        n_before = len(visual) if record is None else record.n_before
        mean = float(n_before) if record is None else record.mean
        return Panel(setting, picture, answer, question.expected, correct, record, mean, n_before, merged)

    def _merged(
        self, question: Question, setting: PruningSetting, record: Record, entered: Sequence[Tensor]
    ) -> tuple[int, ...]:
        """Indices of kept tokens that enter the decoder with other values than in the full model.

        Empty for policies of the vision encoder: they change all values, merged or not.
        """
        if self._full is None or self._full[0] is not question or not entered:
            return ()
        _, full, visual = self._full
        early = any({"pixels", "encoder"} & {*policy.stages} for policy in setting.policies)
        if early or len(visual) != record.n_before:
            return ()
        kept = torch.ones(full.shape[1], dtype=torch.bool, device=full.device)
        kept[visual] = False
        kept[visual[record.indices]] = True
        if int(kept.sum()) != entered[0].shape[1]:
            return ()
        values, before = entered[0][0].float(), full[0, kept].float()
        changed = (values - before).abs().amax(1) > 1e-3 * before.abs().amax(1)
        at = kept.cumsum(0)[visual[record.indices]] - 1
        return tuple(
            index for index, is_changed in zip(record.indices, changed[at].tolist(), strict=True) if is_changed
        )


@contextlib.contextmanager
def _first_layer_inputs(model: Any) -> Iterator[list[Tensor]]:
    """A list that receives what the first decoder layer gets in the first call, (1, M, D)."""
    found: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not found and hidden is not None:
            found.append(hidden.clone())

    layers = getattr(model.get_decoder(), "layers", None) if hasattr(model, "get_decoder") else None
    hook = layers[0].register_forward_pre_hook(note, with_kwargs=True) if layers else None
    try:
        yield found
    finally:
        if hook is not None:
            hook.remove()


def _visual_columns(model: Any, ids: Tensor) -> Tensor:
    """Columns of the image's placeholders, (N,); none if the model has another way to place images."""
    token = getattr(model.config, "image_token_id", None)
    return (ids == token).nonzero()[:, 0] if token is not None else ids.new_empty(0)


def _enlarged(image: Image.Image) -> Image.Image:
    return image.resize(fitted(*image.size, _WIDTH), Image.Resampling.NEAREST)


def _drawn(picture: np.ndarray, record: Record, merged: Sequence[int]) -> np.ndarray:
    """The image once per token grid, side by side: a thumbnail and its mosaic of crops are two grids."""
    shown = kept_indices(record), record.indices, merged, encoded_indices(record)
    of_each = zip(*(masks(record, each) for each in shown), strict=True)
    drawn = []
    for each in of_each:
        kept, entered, marked, encoded = (np.any(mask, axis=0) for mask in each)
        dimmed = tinted(dim(picture, kept, entered), ~encoded)
        drawn.append(framed(dimmed, marked & kept) if (marked & kept).any() else dimmed)
    if not drawn:
        raise ValueError("how this image's tokens lie in the picture is unknown, so nothing can be drawn")
    return np.concatenate(drawn, axis=1)
