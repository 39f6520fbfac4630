"""Attention modules that do not see some of their keys."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@contextlib.contextmanager
def attending(modules: Iterable[torch.nn.Module], attend: Callable[..., Any]):
    """Attention modules compute with a kernel of the tests. Kernels of different functions can be in use at once."""
    name = f"tokenprune_test_{attend.__qualname__}"
    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    before = {module: module.config for module in modules}
    for module, config in before.items():
        module.config = copy.copy(config)
        module.config._attn_implementation_internal = name
    try:
        yield
    finally:
        for module, config in before.items():
            module.config = config


@contextlib.contextmanager
def hidden_keys(modules: Iterable[torch.nn.Module], visible: torch.Tensor):
    """Keys that are False in (B, M) get no attention; masks that the modules are given hold as well."""

    def attend(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        scores = query @ key.transpose(2, 3) * scaling
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, -1e300)
        elif attention_mask is not None:
            scores = scores + attention_mask
        scores = scores.masked_fill(~visible[:, None, None], -1e300)
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    with attending(modules, attend):
        yield
