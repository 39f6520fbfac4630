"""The cells of docs/compatibility.md: each is a test on every family named, and a line of the page.

`tools/docs_tables.py` reads `CELLS` and writes the page.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from tokenprune import pruning, pruning_report
from tokenprune.patches.cache import cache_among

from ..families import BOTH, ENCODES_FIRST, get_model, make_batch, picture, ragged_batch, text_of
from ..oracles import keep_mask


@dataclass(frozen=True)
class Cell:
    """A line of the page.

    Attributes:
        area: the heading that it stands under.
        feature: what is tried.
        says: what holds.
        families: those it is tested on.
    """

    area: str
    feature: str
    says: str
    families: tuple[str, ...]


#: All cells of the modules imported so far, in the order of the page.
CELLS: list[Cell] = []


def area(name: str) -> Callable:
    """A decorator that makes a function of a family a test, and a cell of an area."""

    def cell(feature: str, says: str = "as the masked original", families: tuple[str, ...] = BOTH) -> Callable:
        def add(check: Callable) -> Callable:
            CELLS.append(Cell(name, feature, says, families))
            return pytest.mark.parametrize("family", families)(check)

        return add

    return cell


@contextlib.contextmanager
def hidden(model, keep):
    """The stock model, with dropped columns masked in attention whatever `generate` does meanwhile."""

    def hide(module, args, kwargs):
        tokens = kwargs.get("inputs_embeds")
        tokens = kwargs["input_ids"] if tokens is None else tokens
        cache = cache_among(kwargs)
        past = cache.get_seq_length() if cache is not None else 0
        total = past + tokens.shape[1]
        kept = keep.repeat_interleave(len(tokens) // len(keep), 0)
        kept = torch.nn.functional.pad(kept, (0, max(0, total - kept.shape[1])), value=True)[:, :total]
        mask = kwargs.get("attention_mask")
        return args, {**kwargs, "attention_mask": kept if mask is None else kept & mask[:, :total].bool()}

    handle = text_of(model).register_forward_pre_hook(hide, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def alike(family, batch=None, keep=0.3, seed=0, build=lambda: {}, **options):
    """`generate` gives the same with pruning as with masking. `build` makes arguments that hold state."""
    model, batch = get_model(family), batch or ragged_batch(family)
    common = dict(max_new_tokens=6, return_dict_in_generate=True, output_logits=True)
    torch.manual_seed(seed)
    with pruning(model, "divprune", keep, positions="original"):
        run = model.generate(**batch.inputs, **common, **options, **build())
        kept = keep_mask(batch, _first_of_each(pruning_report(model), batch))
    torch.manual_seed(seed)
    with hidden(model, kept):
        oracle = model.generate(**batch.inputs, **common, **options, **build())
    assert torch.equal(run.sequences, oracle.sequences)
    assert not kept.all()
    return run, oracle


def _first_of_each(records, batch):
    """One report per sample, of those of its beams or copies."""
    copies = len(records) // len(batch.visuals)
    rows = len(batch.inputs["input_ids"])
    assert all(r.sample < rows * copies for r in records)
    chosen = [r for r in records if r.sample % copies == 0]
    return [dataclasses.replace(r, sample=r.sample // copies) for r in chosen]


def rows_to_copy(family):
    """Older transformers hand copies of a row with two pictures the wrong ones, with pruning or without."""
    p = picture(family)
    return ragged_batch(family) if ENCODES_FIRST else make_batch(family, [[3, p, 5], [9, p, 2], [4]])
