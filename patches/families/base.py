"""What a model family declares, and the registry of families by `config.model_type`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from ...policies.types import Grid
from ..encoder_capture import Encoder, Kind
from ..packing import Packing


class UnsupportedModelError(ValueError):
    """The model's type has no family registered."""


@dataclass(frozen=True)
class VisualShape:
    """How the placeholders of one visual input are laid out.

    Attributes:
        grids: the rasters that make it up, in order, separators left out; None if unknown.
        separators: places, within the input, of newline tokens: they carry no picture content and
            are no candidates of any policy.
    """

    grids: tuple[Grid, ...] | None = None
    separators: tuple[int, ...] = ()


def unknown_shape(config: Any, kind: Kind, length: int, inputs: Mapping[str, Any], i: int) -> VisualShape:
    return VisualShape()


def as_returned(config: Any, lengths: list[int]) -> list[int]:
    return lengths


def no_extras(kwargs: dict[str, Any], keep: Tensor, packing: Packing) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """Facts about how a model type moves its visual tokens; the mechanism is shared (`hooks.py`).

    Attributes:
        model_types: values of `config.model_type`.
        positions: `"1d"` RoPE or `"mrope"`, multi-axis RoPE whose positions have rows (t, h, w).
        default_keep: keep ratio where the caller gives none; conservative.
        text_model: attribute path of the text model inside the base model.
        kinds: visual inputs the family takes.
        shape: layout of one visual input, `shape(config, kind, length, inputs, i)`: `length` is
            its number of placeholders, `inputs` the arguments its features were computed from, `i` its
            place among them.
        lengths: placeholders of each visual input, of the lengths of what the feature function returns,
            `lengths(config, returned)`: some return several inputs as one.
        extras: new values of further arguments of the text model that are aligned with the sequence,
            `extras(kwargs, keep, packing)`.
        encoder: facts about the vision encoder, for policies that listen to it.
        masks: who builds 4-D attention masks: the `"text"` model, or the `"base"` model above it.
        first_position: position id of a sequence's first token.
        tower_stage: why tokens cannot leave inside the vision tower, where its encoder gives no layers.
        decoder_stage: why tokens cannot leave between decoder layers; None where they can.
        first_deep_layer: lowest decoder layer before which tokens can leave, of the base's config.
        usual_towers: values of `config.vision_config.model_type` that `shape`, `encoder` and the like are about; empty
            where a family has a tower of its own.
        other_towers: the facts with other towers, by that value.
    """

    model_types: tuple[str, ...]
    positions: Literal["1d", "mrope"] = "1d"
    default_keep: float = 0.25
    text_model: str = "language_model"
    kinds: tuple[Kind, ...] = ("image",)
    shape: Callable[[Any, Kind, int, Mapping[str, Any], int], VisualShape] = unknown_shape
    lengths: Callable[[Any, list[int]], list[int]] = as_returned
    extras: Callable[[dict[str, Any], Tensor, Packing], dict[str, Any]] = no_extras
    encoder: Encoder | None = None
    masks: Literal["text", "base"] = "text"
    first_position: int = 0
    tower_stage: str = "what it makes of a picture after its tower needs the whole raster"
    decoder_stage: str | None = None
    first_deep_layer: Callable[[Any], int] = lambda config: 1
    usual_towers: tuple[str, ...] = ()
    other_towers: Mapping[str, Family] = field(default_factory=dict)

    def with_tower(self, config: Any) -> Family:
        """The facts for the vision tower that a model has: its own facts, or none about what goes on inside it."""
        tower = getattr(getattr(config, "vision_config", None), "model_type", None)
        if not self.usual_towers or tower in self.usual_towers:
            return self
        for other, family in self.other_towers.items():
            if tower == other:
                return family
        nothing = f"nothing is known about its vision tower of type {tower!r}"
        return replace(self, encoder=None, tower_stage=nothing)


_FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    for model_type in family.model_types:
        _FAMILIES[model_type] = family
    return family


def supported_model_types() -> list[str]:
    return sorted(_FAMILIES)


def family_by_type(model_type: str) -> Family:
    """The family of a supported model type."""
    return _FAMILIES[model_type]


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
    # transformers 4 names no base model for LLaVA, so ask for the child that holds the text model
    for candidate in (model, getattr(model, "base_model", None), getattr(model, "model", None)):
        if isinstance(candidate, nn.Module) and not {"language_model", "text_model"}.isdisjoint(candidate._modules):
            return candidate
    return model


def family_of(model: Any) -> Family:
    """The family of a model.

    Raises:
        UnsupportedModelError: naming the model's type and the supported ones.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, nn.Module) or model_type not in _FAMILIES:
        what = f"model type {model_type!r}" if model_type else f"{type(model).__name__} object"
        raise UnsupportedModelError(
            f"{what} is not supported; supported model types: {', '.join(supported_model_types())}"
        )
    return _FAMILIES[model_type].with_tower(model.config)
