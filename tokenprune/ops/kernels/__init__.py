"""The ops as Triton kernels. `ops/reference.py` defines what they return."""

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
