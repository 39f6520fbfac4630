"""The harness's own wrappers, pruned: their prompts and loops, our tokens.

Classes come to be when the registry asks for them, so that one missing dependency of one wrapper
does not take the others along.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import logging
import os
from collections.abc import Callable
from typing import Any

import torch

from ...api import pruning_report
from .manifests import BUILTINS
from .options import PruningOptions
from .statistics import Statistics

logger = logging.getLogger(__name__)


class Pruned:
    """Over a built-in wrapper: prunes its model, and lets no failure pass for an empty answer."""

    def __init__(self, **arguments: Any) -> None:
        options = PruningOptions.take(arguments)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.cuda.is_available():
            raise ValueError("the harness's own wrappers run in several processes on GPUs only; use tokenprune_hf")
        dtype = arguments.pop("dtype", None)
        if not torch.cuda.is_available():  # its defaults are for GPUs
            arguments |= {"device": "cpu", "device_map": "cpu"}
            dtype = dtype or "float32"
        super().__init__(**arguments)
        model = self.model  # type: ignore[attr-defined]
        if dtype not in (None, "auto"):
            model.to(getattr(torch, str(dtype)))
        options.apply(model)
        self._pruned = options.policy != "none"

    @property
    def _config_of_text(self) -> Any:
        return self.model.config.get_text_config()  # type: ignore[attr-defined]

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """As the built-in one, which may swallow an exception of `generate` and score an empty answer.

        Raises:
            RuntimeError: at the first call of `generate` that fails.
        """
        model = self.model  # type: ignore[attr-defined]
        self._statistics = Statistics()
        model.generate = _Guard(model.generate, self._counted)
        try:
            answers = super().generate_until([_own_arguments(r) for r in requests])  # type: ignore[misc]
        except _Failed as failed:
            raise RuntimeError(f"generate() failed: {failed.__cause__}") from failed.__cause__
        finally:
            del model.generate
        self._statistics.log(self.rank)  # type: ignore[attr-defined]
        return answers

    def _counted(self, call: Callable[[], torch.Tensor], arguments: dict[str, Any]) -> torch.Tensor:
        model, statistics = self.model, self._statistics  # type: ignore[attr-defined]
        with statistics.timed(model.device):
            out = call()
        rows = arguments["input_ids"].shape
        records = pruning_report(model) if self._pruned else []
        new = [out.shape[1] - rows[1]] * rows[0]
        statistics.add(records, [True] * rows[0], self._config_of_text.num_hidden_layers, new)
        return out


class _Failed(BaseException):
    """What `except Exception` in a built-in loop lets through."""


class _Guard:
    """Stands in for `generate` of one model during a run, so that its failures end the run."""

    def __init__(self, generate: Callable[..., Any], around: Callable[..., Any]):
        functools.update_wrapper(self, generate)
        self.generate, self.around = generate, around

    def __call__(self, **arguments: Any) -> Any:
        try:
            return self.around(lambda: self.generate(**arguments), arguments)
        except Exception as error:
            raise _Failed from error


def _own_arguments(request: Any) -> Any:
    """A request whose generation arguments may be changed.

    The loop of `llava_hf` fills in defaults where they stand, and the response cache then files the
    answer under arguments nobody will look up.
    """
    context, messages, generation, *rest = request.arguments
    return dataclasses.replace(request, arguments=(context, messages, copy.deepcopy(generation), *rest))


def __getattr__(name: str) -> type:
    if name not in BUILTINS:
        raise AttributeError(name)
    module, cls = BUILTINS[name]
    built = type(name, (Pruned, getattr(importlib.import_module(module), cls)), {"__module__": __name__})
    globals()[name] = built
    return built
