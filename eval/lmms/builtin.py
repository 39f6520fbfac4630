"""The harness's own wrappers with a pruned model: prompts and loops are theirs.

A class is made when the registry asks for it, so that a missing dependency of one wrapper does not affect the others.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import torch

from .manifests import BUILTINS
from .options import take_pruning
from .statistics import Statistics


class Pruned:
    """Mixed into a built-in wrapper: prunes its model, and turns failures of `generate` into errors."""

    def __init__(self, **arguments: Any) -> None:
        setting = take_pruning(arguments)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.cuda.is_available():
            raise ValueError("the harness's own wrappers run in several processes on GPUs only; use tokenprune_hf")
        dtype = arguments.pop("dtype", None)
        if not torch.cuda.is_available():  # the wrappers' defaults are for GPUs
            arguments |= {"device": "cpu", "device_map": "cpu"}
            dtype = dtype or "float32"
        super().__init__(**arguments)
        model = self.model  # type: ignore[attr-defined]
        if dtype not in (None, "auto"):
            model.to(getattr(torch, str(dtype)))
        setting.apply(model)
        self._setting = setting

    @property
    def _text_config(self) -> Any:
        return self.model.config.get_text_config()  # type: ignore[attr-defined]

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Run the built-in loop, which may catch an exception of `generate` and score an empty answer.

        Raises:
            RuntimeError: a call of `generate` failed.
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
        batch, length = arguments["input_ids"].shape
        new_tokens = [out.shape[1] - length] * batch
        records, layers = self._setting.records(model), self._text_config.num_hidden_layers
        statistics.add(records, [True] * batch, layers, new_tokens)
        return out


class _Failed(BaseException):
    """Derives from BaseException, so that `except Exception` in a built-in loop does not catch it."""


class _Guard:
    """Replaces `generate` of one model during a run, and raises `_Failed` where it fails."""

    def __init__(self, generate: Callable[..., Any], around: Callable[..., Any]):
        functools.update_wrapper(self, generate)
        self.generate, self.around = generate, around

    def __call__(self, **arguments: Any) -> Any:
        try:
            return self.around(lambda: self.generate(**arguments), arguments)
        except Exception as error:
            raise _Failed from error


def _own_arguments(request: Any) -> Any:
    """A request with a copy of its generation arguments.

    The loop of `llava_hf` writes defaults into them, and the response cache would then store the answer under
    arguments that no later run looks up.
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
