"""FLOPs of the benchmark's questions: encoder and prefill as they really run under a setting, a question at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import minivlm
from ..answers import Sample, encode_for
from ..profile.counting import count_flops
from ..setting import PruningSetting
from . import tasks
from .run import Cell, Plan

#: Of a cell's results, FLOPs of its first questions up to the first token of the answer.
FLOPS = "flops"


@torch.inference_mode()
def request_flops(model: Any, processor: Any, samples: Sequence[Sample], setting: PruningSetting) -> list[int]:
    """FLOPs of each question alone up to the first token of its answer: vision encoder, selection and prefill.

    Args:
        model: an embedded model, not pruned.
        processor: its processor.
        samples: the questions.
        setting: how the model is pruned.

    Returns:
        for each question what torch counts, a multiplication and an addition as two.
    """
    found = []
    with setting.context(model):
        for sample in samples:
            inputs = encode_for(setting, processor, [sample])
            with count_flops() as counter:
                model(**inputs, logits_to_keep=1)
            found.append(int(counter.get_total_flops()))
    return found


def add_flops(plan: Plan, out: Path, n: int, note: Callable[[str], None] = lambda text: None) -> None:
    """Write the FLOPs of the first `n` questions into every finished cell of a plan that lacks them."""
    todo = [cell for cell in plan.cells() if len(cell.read(out).get(FLOPS, ())) < min(n, plan.samples)]
    if not todo:
        return
    note(f"counting FLOPs of {n} questions of {len(todo)} cells")
    model, processor = minivlm.load(plan.model)
    for cell in todo:
        samples = tasks.asked(plan.model, cell.task, plan.samples, plan.split)[:n]
        _add(cell, out, request_flops(model, processor, samples, cell.setting))


def _add(cell: Cell, out: Path, flops: list[int]) -> None:
    results = cell.read(out)
    cell.write(out, {key: value for key, value in results.items() if key not in ("identity", "names")} | {FLOPS: flops})
