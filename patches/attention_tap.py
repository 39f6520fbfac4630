"""Reading the queries and keys of one attention module, under any kernel that computes the attention.

transformers looks the kernel up by `module.config._attn_implementation` in a table. The tapped module
alone gets a copy of its config that names a proxy; the proxy reads queries and keys and calls the
kernel that would have run. Nothing else changes: not the model's implementation, not its outputs, and
no attention map is made.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

_PREFIX = "tokenprune_"

#: Called with (module, query (B, H, Q, d), key and value (B, H_kv, N, d), arguments of the kernel by name).
Reader = Callable[[nn.Module, Tensor, Tensor, Tensor, dict[str, Any]], None]


class AttentionTap:
    """A tap on one attention module.

    Args:
        module: reads `self.config._attn_implementation` and calls the kernel through transformers'
            `ALL_ATTENTION_FUNCTIONS`, as its attention modules do.
        reader: is handed queries, keys and values as the kernel gets them (rotary embedding applied, past
            keys included), at every call.
    """

    def __init__(self, module: nn.Module, reader: Reader):
        self.module, self.reader = module, reader
        self._config: Any = None

    def attach(self) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        config: Any = self.module.config
        name = _PREFIX + (config._attn_implementation or "eager")
        if name not in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS.register(name, _proxy)
        self._config = config
        tapped = copy.copy(config)
        tapped._attn_implementation_internal = name  # the public setter would reach sub-configs
        tapped.__dict__["_tokenprune_tap"] = self
        self.module.config = tapped

    def detach(self) -> None:
        # Somebody may have put another config there since, or taken the tap off already.
        if getattr(getattr(self.module, "config", None), "_tokenprune_tap", None) is self:
            self.module.config = self._config


def _proxy(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    tap: AttentionTap = module.config._tokenprune_tap
    name = tap._config._attn_implementation or "eager"
    tap.reader(module, query, key, value, {"attention_mask": args[0], **kwargs} if args else kwargs)
    if name == "eager":  # not in the table: each modelling file has its own
        kernel = sys.modules[type(module).__module__].eager_attention_forward
    else:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        kernel = ALL_ATTENTION_FUNCTIONS[name]
    return kernel(_Untapped(module, tap._config), query, key, value, *args, **kwargs)


class _Untapped:
    """The module as the kernel knows it: with its own config."""

    def __init__(self, module: nn.Module, config: Any):
        self._module, self.config = module, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
