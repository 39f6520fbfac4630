"""Versions of transformers that record outputs of layers below their hooks, where a hook cannot change them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from torch import nn


def refuse_recording(module: nn.Module, policy: str) -> None:
    """Raise `ValueError` if what is read of a vision encoder's layer is recorded before hooks on the layer run.

    Until some transformers 5.x, `forward` of the layers is replaced during a call whose hidden states are read.

    Args:
        module: the layer, during its call.
        policy: what the message calls the policy.
    """
    replaced: Any = vars(module).get("forward")
    if "make_capture_wrapper" in getattr(replaced, "__qualname__", "") or (
        getattr(getattr(replaced, "__code__", None), "co_name", "") == "wrapped_forward"
    ):
        raise ValueError(
            f"policy {policy} lets patches leave in the vision tower and fills its raster up behind a layer, of which "
            f"transformers {version('transformers')} reads the output before that can be done; install 5.17 or later, "
            "or use a policy that acts before the language model"
        )
