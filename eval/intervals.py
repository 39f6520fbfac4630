"""Bootstrap intervals of means."""

from __future__ import annotations

import numpy as np

RESAMPLES = 2000


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values`, (n,) with n >= 1.

    The resamples are seeded, so equal values give equal intervals.
    """
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    # A resample of n values is a multinomial draw of how often each distinct value occurs in it.
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(values), counts / len(values), RESAMPLES)
    low, high = np.percentile(drawn @ distinct / len(values), (2.5, 97.5))
    return float(low), float(high)
