"""What the vision stage leaves of one batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .decoder_call import DecoderInput
from .packing import Packing
from .report import Record


@dataclass(frozen=True)
class VisionSelection:
    """What stays of one batch. Bookkeeping is on the host, so that the device is waited for once per batch.

    Attributes:
        embeds: (B, L, D), replaced features included.
        mask: (B, P + L) bool padding mask over logical columns, or None.
        keep_mask: (B, L) bool on the host, False at pruned columns.
        not_padding: (B, L) bool on the host.
        prompt: (B, L) bool on the host, False at padding and at an answer so far, which is no part of the question.
        records: the report.
        packing_cpu: which columns stay and where, on the host; None where nothing is pruned.
        packing: the same on the device.
        pruned_embeds: (B, M, D), what the text model is fed.
        decoder_inputs: per row, the visual inputs that the decoder stage may cut; none without one.
    """

    embeds: Tensor
    mask: Tensor | None
    keep_mask: Tensor
    not_padding: Tensor
    prompt: Tensor
    records: list[Record]
    packing_cpu: Packing | None
    packing: Packing | None
    pruned_embeds: Tensor
    decoder_inputs: list[list[DecoderInput]]
