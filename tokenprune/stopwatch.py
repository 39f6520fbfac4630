"""The time that a selection takes."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Measures from when it is made. On a GPU it does not count what was queued there before.

    Args:
        device: that computes. Other devices than CUDA's are timed by the host's clock.
    """

    def __init__(self, device: torch.device):
        self.device, self.started, self.event = device, time.perf_counter(), None
        if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            self.event = self._now()

    def ms(self) -> float:
        """Milliseconds so far; waits for a GPU."""
        if self.event is None:
            return (time.perf_counter() - self.started) * 1e3
        end = self._now()
        end.synchronize()
        elapsed: float = self.event.elapsed_time(end)
        return elapsed

    def _now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
