"""The ops for the CPU and for devices without Triton.

Matrix products run on the tensors' own device. Greedy loops run on the host in NumPy: a step is little more than the
overhead of a call, which is a third of torch's.
"""

from .attention import attention_received
from .coverage import coverage_select, token_coverage_select
from .dpp import dpp_select
from .greedy import max_min_select, max_sum_select
from .topk import topk_gather

__all__ = [
    "attention_received",
    "coverage_select",
    "dpp_select",
    "max_min_select",
    "max_sum_select",
    "token_coverage_select",
    "topk_gather",
]
