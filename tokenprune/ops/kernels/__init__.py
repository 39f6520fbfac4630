"""The ops as Triton kernels."""

from .attention import attention_received
from .greedy import max_min_select, max_sum_select
from .topk import topk_gather

__all__ = ["attention_received", "max_min_select", "max_sum_select", "topk_gather"]
