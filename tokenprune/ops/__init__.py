"""Selection ops: batched, float32 inside, deterministic, lowest index wins a tie."""

from .greedy import max_min_select

__all__ = ["max_min_select"]
