"""Checks of what policies answer, at every stage, before anything is changed by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..device import to_host
from .types import DecoderView, Selection, TowerCut, TowerView, VisualTokens


def checked_selections(
    name: str, answers: Any, tokens: Sequence[VisualTokens], n_keep: Sequence[int | None]
) -> list[Selection]:
    """The answers of `select_many`, checked, with their indices on the host. Fetching them waits for the device.

    Args:
        name: of the policy.
        answers: what it returned.
        tokens: the inputs it was called with.
        n_keep: for each, how many tokens have to stay; None for any number.

    Raises:
        ValueError: naming the policy and what is wrong.
    """
    if not isinstance(answers, list | tuple) or len(answers) != len(tokens):
        raise ValueError(f"policy {name!r} must return a list of {len(tokens)} Selections, got {_described(answers)}")
    for selection, each in zip(answers, tokens, strict=True):
        if not isinstance(selection, Selection):
            raise ValueError(f"policy {name!r} must return a Selection for each input, got {_described(selection)}")
        selection.check_form(each, name)
    finite = [
        (selection.features.isfinite().all() | ~each.features.isfinite().all()).long()[None]
        for selection, each in zip(answers, tokens, strict=True)
        if selection.features is not None
    ]
    parts = to_host([*(selection.indices for selection in answers), *([torch.cat(finite)] if finite else [])])
    if finite and not bool(parts.pop().all()):
        raise ValueError(f"policy {name!r} returned features that are not finite numbers")
    chosen = [Selection(part, answer.features) for part, answer in zip(parts, answers, strict=True)]
    for selection, each, k in zip(chosen, tokens, n_keep, strict=True):
        selection.check(len(each), k, name)
    return chosen


def refuse_features(name: str, answers: Sequence[Selection]) -> None:
    """Raise `ValueError` for new features from the policy of that name, as there are none before the vision tower."""
    if any(answer.features is not None for answer in answers):
        raise ValueError(
            f"policy {name!r} gave new features, and there are none before the vision tower; use a policy that only "
            "selects, as divprune@pixels"
        )


def checked_masks(name: str, views: Sequence[DecoderView], answers: Any) -> list[list[Tensor] | None]:
    """The answers of `decoder_select_many`, checked.

    Args:
        name: of the policy.
        views: the rows it was called with.
        answers: what it returned.

    Raises:
        ValueError: naming the policy and what is wrong.
    """
    if not isinstance(answers, list | tuple) or len(answers) != len(views):
        raise ValueError(
            f"policy {name!r} must return an answer for each of {len(views)} rows, got {_described(answers)}"
        )
    for view, answer in zip(views, answers, strict=True):
        if answer is None:
            continue
        sizes = [len(columns) for columns in view.visual]
        if not isinstance(answer, list | tuple) or len(answer) != len(sizes):
            raise ValueError(
                f"policy {name!r} must return a bool mask for each of {len(sizes)} visual inputs of a row, or None, "
                f"got {_described(answer)}"
            )
        for mask, size in zip(answer, sizes, strict=True):
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (size,) or mask.is_meta:
                raise ValueError(f"policy {name!r} must return bool masks of shape ({size},), got {_described(mask)}")
    return list(answers)


def checked_cut(name: str, view: TowerView, cut: Any) -> TowerCut | None:
    """The answer of `encoder_select`, as far as it can be checked without waiting for the device.

    Args:
        name: of the policy.
        view: what it was called with.
        cut: what it returned.

    Raises:
        ValueError: naming the policy and what is wrong.
    """
    if cut is None:
        return None
    batch, length, width = view.hidden.shape
    if not isinstance(cut, TowerCut):
        raise ValueError(f"policy {name!r} must return a TowerCut or None, got {_described(cut)}")
    keep = cut.keep
    if (
        not isinstance(keep, Tensor)
        or keep.dtype != torch.int64
        or keep.ndim != 2
        or len(keep) != batch
        or keep.is_meta
    ):
        raise ValueError(f"policy {name!r} must return int64 indices of shape ({batch}, K), got {_described(keep)}")
    k = keep.shape[1]
    if view.group > 1 and (cut.hidden is not None or cut.sizes is not None):
        raise ValueError(
            f"policy {name!r} must return neither hidden states nor sizes where one token is made of {view.group} "
            "patches, which leave or stay together"
        )
    for field, value, shape in (("hidden", cut.hidden, (batch, k, width)), ("sizes", cut.sizes, (batch, k))):
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point() or value.is_meta:
            raise ValueError(f"policy {name!r} must return {field} of shape {shape}, got {_described(value)}")
    if k < int(view.cls) or k > length // view.group:
        raise ValueError(f"policy {name!r} kept {k} of {length // view.group} tokens in the vision tower")
    return cut


def orderly(view: TowerView, cut: TowerCut) -> Tensor:
    """Whether a cut's values are valid, () bool on the device.

    Indices have to be in range, ascending and distinct, with the CLS token first if there is one. New hidden states
    have to be finite if the old ones are.
    """
    keep = cut.keep
    good = ((keep >= 0) & (keep < view.hidden.shape[1] // view.group)).all() & (keep[:, 1:] > keep[:, :-1]).all()
    if view.cls:
        good = good & (keep[:, 0] == 0).all()
    return good if cut.hidden is None else good & (cut.hidden.isfinite().all() | ~view.hidden.isfinite().all())


def _described(value: Any) -> str:
    """A short description of any value, for messages."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}" + (" without data" if value.is_meta else "")
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{type(value).__name__}" if value is not None else "None"
