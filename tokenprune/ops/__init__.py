"""Selection ops: batched, float32 inside, deterministic, lowest index wins a tie."""

from .attention import attention_received
from .greedy import max_min_select, max_sum_select

__all__ = ["attention_received", "max_min_select", "max_sum_select"]
