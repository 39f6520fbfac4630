"""Finding the parts of a model that a call passes: what the user holds, the head, the base model."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

from torch import nn

from .families.base import Family
from .families.registry import UnsupportedModelError


def unwrapped(model: Any) -> Any:
    """The model inside wrappers (PEFT's, torch.compile's)."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def base_of(model: Any) -> Any:
    """The model that merges visual features and calls the text model; wrappers are looked through."""
    model = unwrapped(model)
    # transformers 4 names no base model for LLaVA, so look for the child that holds the text model
    for candidate in (model, getattr(model, "base_model", None), getattr(model, "model", None)):
        if isinstance(candidate, nn.Module) and not {"language_model", "text_model"}.isdisjoint(candidate._modules):
            return candidate
    return model


def text_model_of(base: nn.Module, family: Family) -> Any:
    """The text model of a base model.

    Raises:
        UnsupportedModelError: for a class that wraps a model of the family.
    """
    paths = (family.text_model,) if isinstance(family.text_model, str) else family.text_model
    for path in paths:
        with contextlib.suppress(AttributeError):
            return base.get_submodule(path)
    raise UnsupportedModelError(
        f"{type(base).__name__} is not supported: it has no {' or '.join(map(repr, paths))}, where the text model of "
        "its model type is; prune the model inside it that generates text"
    )


def heads_of(model: nn.Module) -> list[nn.Module]:
    """The modules from the one that the user holds down to the language-model head.

    The base model is none of them, except where one module is both: where a model merges visual features in its head.

    Raises:
        UnsupportedModelError: if the head reads one token of each row, as classifiers and reward models do.
    """
    base, head = base_of(model), unwrapped(model)
    can_generate = getattr(head, "can_generate", None)
    generates = can_generate is not None and bool(can_generate())
    if head is base and not generates:
        return []
    if not generates:
        raise UnsupportedModelError(
            f"{type(head).__name__} is not supported: its head picks the place that it reads of each row in the "
            f"unpruned sequence; prune a model that generates text, or its base model alone ({type(base).__name__})"
        )
    path = next((name for name, module in model.named_modules() if module is head), "")
    above = [path[:i] for i, c in enumerate(path) if c == "."]
    return [model.get_submodule(name) for name in dict.fromkeys(["", *above, path])]


def named_arguments(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name; those that `**kwargs` would collect are beside the others."""
    arguments = inspect.signature(function).bind_partial(*args, **kwargs).arguments
    return {**arguments, **arguments.pop("kwargs", {})}


def arguments_by_name(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a module's forward, by name where it names them; wrappers that take `*args` get them as they are.

    Returns:
        the positional arguments that are left, and all others by name.
    """
    if not args:
        return args, kwargs
    parameters = inspect.signature(module.forward).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return args, kwargs
    return (), named_arguments(module.forward, args, kwargs)
