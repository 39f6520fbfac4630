"""Where the class of a model comes from: transformers, a package that derives from it, or its own checkpoint."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from torch import nn

#: Packages of model classes: those of transformers, and those that it loads from checkpoints.
_TRANSFORMERS, _REMOTE = "transformers.", "transformers_modules."


def _classes(model: nn.Module) -> Iterator[type]:
    """The classes of the modules that have the model's config: wrappers, the head, the base model."""
    config: Any = model.config
    return (type(module) for module in model.modules() if getattr(module, "config", None) is config)


def is_remote(model: nn.Module) -> bool:
    """Whether a class of the model came with its checkpoint, as `trust_remote_code` allows."""
    return any(cls.__module__.startswith(_REMOTE) for cls in _classes(model))


def derived_type(model: nn.Module, known: Container[str]) -> str | None:
    """The model type among `known` whose class in transformers the model's class is or derives from; None: none."""
    for cls in _classes(model):
        for parent in cls.__mro__:
            model_type = getattr(getattr(parent, "config_class", None), "model_type", None)
            if parent.__module__.startswith(_TRANSFORMERS) and model_type in known:
                return str(model_type)
    return None
