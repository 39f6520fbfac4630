"""Selection ops: batched, computed in float32, deterministic. The lowest index wins a tie.

Each op has three implementations that give the same indices: a plain torch reference that defines it
(`reference.py`), one that selects on the host (`host.py`), and Triton kernels (`kernels/`). `implementation` forces
one of them for a block of code. All are `torch.library` custom ops, so `torch.compile` does not break its graph at
them.
"""

from .attention import attention_received
from .checks import TokenCover
from .coverage import coverage_select, token_coverage_select
from .dispatch import implementation
from .dpp import dpp_select
from .greedy import max_min_select, max_sum_select
from .topk import topk_gather, topk_select

__all__ = [
    "TokenCover",
    "attention_received",
    "coverage_select",
    "dpp_select",
    "implementation",
    "max_min_select",
    "max_sum_select",
    "token_coverage_select",
    "topk_gather",
    "topk_select",
]
