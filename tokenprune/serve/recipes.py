"""Recipes of `tokenprune tune` in an engine, as far as it can follow them."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..patches.families.registry import family_by_type
from ..policies.at_pixels import AtPixels
from ..policies.base import Policy
from ..recipe import Recipe


def read(path: str, config: Any, name: str) -> dict[str, Any]:
    """What a recipe says, by the keys of the settings; a `keep` of None is what the policy finds.

    A `RecipeWarning` says where the engine does something else.

    Args:
        path: of the recipe.
        config: of the checkpoint.
        name: of the variable that names the recipe, for messages.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no recipe, or one of several policies or without a number.
    """
    recipe = Recipe.read(path)
    labels = [policy.label for policy in recipe.policies]
    if len(labels) != 1:
        raise ValueError(f"{name}={path} has policies {'+'.join(labels)}, and an engine takes one")
    if isinstance(recipe.keep, str):
        raise ValueError(
            f"{name}={path} has keep {recipe.keep!r}, which is found from the tokens; an engine wants the count before "
            "the vision tower runs"
        )
    if recipe.keep is None and not finds_count(recipe.policies[0]):
        raise ValueError(f"{name}={path} has no keep: an engine wants the count before the vision tower runs")
    recipe.warn(_differences(recipe, config))
    policy = recipe.policies[0]
    if isinstance(policy, AtPixels):
        raise ValueError(f"{name}={path} has policy {policy.label!r}, which reads patch embeddings; an engine has none")
    options = {each.name: getattr(policy, each.name) for each in dataclasses.fields(policy) if each.init}
    return {"policy": policy.name, "keep": recipe.keep, "options": options}


def finds_count(policy: Policy) -> bool:
    """Whether a policy knows its own count before the vision tower runs."""
    return policy.adaptive and "pixels" in policy.stages


def _differences(recipe: Recipe, config: Any) -> list[str]:
    """In what an engine differs from what was measured; a sentence for each. Weights are not compared."""
    told = recipe.other_versions()
    if config.model_type != recipe.model["type"]:
        told.append(f"it was measured on model type {recipe.model['type']!r}, and this is {config.model_type!r}")
    positions = "original" if family_by_type(config.model_type).positions == "mrope" else "compact"
    if recipe.positions != positions:
        told.append(f"it was measured with {recipe.positions} positions, and the engine has {positions} ones")
    if any(policy.decoder_follow_up() is not None for policy in recipe.policies):
        told.append("its policy goes on in the decoder, which an engine does not allow")
    return told
