"""Selection ops: batched, float32 inside, deterministic, lowest index wins a tie.

Each op has a plain torch reference that states what it means, a path that selects on the host, and
Triton kernels; `implementation` overrides the choice. All are `torch.library` custom ops, so
`torch.compile` keeps its graph whole around them.
"""

from .attention import attention_received
from .coverage import coverage_select
from .dispatch import implementation
from .dpp import dpp_select
from .greedy import max_min_select, max_sum_select
from .topk import topk_gather, topk_select

__all__ = [
    "attention_received",
    "coverage_select",
    "dpp_select",
    "implementation",
    "max_min_select",
    "max_sum_select",
    "topk_gather",
    "topk_select",
]
