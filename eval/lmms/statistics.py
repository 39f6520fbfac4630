"""Tokens kept and speed of a run, for the harness's `throughput` block."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...patches import Record


@dataclass
class Statistics:
    """Sums over the samples of one process, without the padding requests of a distributed run.

    Attributes:
        samples: answered.
        new_tokens: generated.
        visual_tokens: before pruning; 0 for the full model.
        kept_tokens: after it, averaged over decoder layers.
        select_ms: selection, milliseconds.
        seconds: in `generate`.
    """

    samples: int = 0
    new_tokens: int = 0
    visual_tokens: int = 0
    kept_tokens: float = 0.0
    select_ms: float = 0.0
    seconds: float = 0.0

    @contextmanager
    def timed(self, device: torch.device) -> Iterator[None]:
        """Adds the wall time of a block, with everything that it queues on the device."""
        _synchronise(device)
        started = time.perf_counter()
        yield
        _synchronise(device)
        self.seconds += time.perf_counter() - started

    def add(self, records: Sequence[Record], rows: Sequence[bool], layers: int, new_tokens: Sequence[int]) -> None:
        """Add a batch.

        Args:
            records: of its visual inputs.
            rows: per sample, whether it counts.
            layers: number of decoder layers, over which kept tokens are averaged.
            new_tokens: per sample, tokens generated.
        """
        self.samples += sum(rows)
        self.new_tokens += sum(n for n, counts in zip(new_tokens, rows, strict=True) if counts)
        for record in records:
            if record.sample < len(rows) and rows[record.sample]:
                self.visual_tokens += record.n_before
                self.kept_tokens += record.mean_tokens(layers)
                self.select_ms += record.select_ms

    def gathered(self) -> Statistics:
        """Sums over all processes, except for `seconds`, which is the slowest one's."""
        if _processes() == 1:
            return self
        parts: list[Any] = [None] * _processes()
        torch.distributed.all_gather_object(parts, vars(self))
        sums = {name: sum(part[name] for part in parts) for name in vars(self)}
        return Statistics(**sums | {"seconds": max(part["seconds"] for part in parts)})

    def log(self, rank: int) -> None:
        """Pass the statistics of all processes to the harness, from the process of rank 0."""
        from lmms_eval.models.model_utils.gen_metrics import log_metrics

        total = self.gathered()
        if rank != 0:
            return
        n = max(total.samples, 1)
        log_metrics(
            total_elapsed_time=total.seconds,
            total_gen_tokens=total.new_tokens,
            avg_speed=total.new_tokens / total.seconds if total.seconds else 0.0,
            additional_metrics={
                "processes": _processes(),
                "samples": total.samples,
                "visual_tokens": total.visual_tokens / n,
                "kept_tokens": total.kept_tokens / n,
                "select_ms": total.select_ms / n,
                "samples_per_second": total.samples / total.seconds if total.seconds else 0.0,
            },
        )


def _processes() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
