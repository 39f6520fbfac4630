"""Labels and logits of the language-model head, which are computed from the pruned sequence.

What the head indexes that sequence by has to shrink with it.
"""

from __future__ import annotations

from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from .packing import Packing
from .visual_inputs import feeds_pictures


class LogitsToKeep:
    """Which columns a head computes logits for, as its argument `logits_to_keep` says.

    The head gets a tensor of columns in any case, which is rewritten in place when the sequence has shrunk.

    Args:
        wanted: the last so many columns, or a (K,) tensor of columns or a bool mask, in the caller's sequence.
        length: of the caller's sequence.
        device: of the model.

    Attributes:
        columns: (K,) int64, what the head is given.
    """

    def __init__(self, wanted: int | Tensor, length: int, device: torch.device):
        self.last = wanted if isinstance(wanted, int) else None
        if isinstance(wanted, int):
            columns = torch.arange(max(0, length - wanted), length, device=device)
        else:
            columns = wanted.nonzero()[:, 0] if wanted.dtype == torch.bool else wanted.long()
            columns = torch.where(columns < 0, columns + length, columns)
        self.columns = columns

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> LogitsToKeep | None:
        """What a call of a head wants; None where it does not depend on the sequence's length."""
        wanted = arguments.get("logits_to_keep")
        tokens = arguments.get("input_ids")
        tokens = arguments.get("inputs_embeds") if tokens is None else tokens
        if wanted is None or tokens is None or not feeds_pictures(arguments):
            return None
        if isinstance(wanted, int) and wanted <= 1:  # all of them, or the last, which always stays
            return None
        length, device = tokens.shape[1], tokens.device
        if isinstance(wanted, slice):
            wanted = range(length)[wanted]
        if not isinstance(wanted, int | Tensor):
            wanted = torch.as_tensor(list(wanted), device=device)
        return cls(wanted, length, device)

    def follow(self, packing: Packing, length: int) -> None:
        """Rewrite the columns, in a sequence of `length` columns that shrinks.

        Raises:
            ValueError: if a column is pruned, or becomes another one in each row.
        """
        new_length = packing.index.shape[1]
        if self.last is not None:
            # As many of the last columns as are left in the row that has most of them left.
            held = (packing.index >= length - self.last) & packing.held
            self.last = int(held.sum(1).max())
            self.columns.data = torch.arange(new_length - self.last, new_length, device=self.columns.device)
            return
        wanted = self.columns.to(packing.index.device)
        found = (packing.index[:, :, None] == wanted) & packing.held[:, :, None]  # (B, M, K)
        new = found.long().argmax(1)
        if not bool(found.any(1).all()) or not bool((new == new[:1]).all()):
            raise ValueError(
                f"logits_to_keep={wanted.tolist()} names places that pruning removes, or that come to stand elsewhere "
                "in each row; pass an int (the last so many), or take what you need from the pruned sequence's logits"
            )
        self.columns.data = new[0].to(self.columns.device)


def keep_columns(output: Any, wanted: int | Tensor) -> None:
    """Cut a base model's output to the columns that its head wants, for a head that would not do so itself.

    Args:
        output: of the base model, or None, where it failed.
        wanted: as for `LogitsToKeep`, in the sequence that is left.
    """
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is not None and (isinstance(wanted, Tensor) or wanted):
        output.last_hidden_state = hidden[:, wanted if isinstance(wanted, Tensor) else slice(-wanted, None)]


def labels_among(arguments: dict[str, Any]) -> Tensor | None:
    """The labels of a call."""
    labels = arguments.get("labels")
    return labels if isinstance(labels, Tensor) else None


def labels_above(base: nn.Module, frame: FrameType) -> bool:
    """Whether a head without our hooks calls the base model, and was given labels.

    Args:
        base: the base model.
        frame: that runs it.
    """
    caller: FrameType | None = frame
    for _ in range(12):  # torch's and transformers' own frames lie between
        caller = None if caller is None else caller.f_back
        if caller is None:
            return False
        owner = caller.f_locals.get("self")
        if isinstance(owner, nn.Module) and any(child is base for child in owner.children()):
            return caller.f_locals.get("labels") is not None
    return False


def smoothed_above(frame: FrameType) -> bool:
    """Whether a `Trainer` with a label smoother of its own runs the model: it keeps the labels to itself."""
    caller: FrameType | None = frame
    while caller is not None:
        if caller.f_code.co_name == "compute_loss":
            trainer = caller.f_locals.get("self")
            smoother = getattr(trainer, "label_smoother", None)
            return smoother is not None and getattr(trainer, "compute_loss_func", None) is None
        caller = caller.f_back
    return False
