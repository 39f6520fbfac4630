"""What the times of a server under load are taken by."""

from __future__ import annotations

import time
from collections.abc import Callable


def processor_time() -> float:
    """Seconds that this process and its children have computed, those of the operating system for them included.

    On a machine that others use as well it says what the wall clock says where one core does all the work and does
    nothing else.
    """
    import psutil

    here = psutil.Process()
    total = 0.0
    for process in (here, *here.children(recursive=True)):
        try:
            spent = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += spent.user + spent.system
    return total


#: By name: functions that return seconds.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": processor_time}
