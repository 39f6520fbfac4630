"""A draft for assisted decoding that sees pictures through pruned tokens, and shares the weights of its model."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from .api import apply_pruning, pruning_status, remove_pruning
from .arguments import Keep, Positions
from .composition import PolicyLike
from .patches.families.registry import family_of
from .patches.generation import OWN_PIXELS
from .policies.stages import Stage

M = TypeVar("M", bound=nn.Module)


def draft(
    model: M,
    policy: PolicyLike = "auto",
    keep: Keep = None,
    *,
    positions: Positions | None = None,
    pixels: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> M:
    """An assistant for `model.generate(..., assistant_model=draft(model, "divprune", 0.1))`.

    The draft proposes tokens, and the model checks them: the text is the one that the model writes alone, whatever the
    draft has seen. The draft is a copy of the model with pruning, and shares its parameters and buffers, so that it
    needs no memory but for its KV cache. The model itself is not changed.

    It pays where reading the KV cache dominates the cost of a step (long videos). A smaller model of the same
    vocabulary can be the draft instead: `draft(small, "divprune", 0.1, pixels=inputs)`.

    Args:
        model: a transformers model of a supported type with a language-model head. Pruning that is applied to it is
            not that of the draft.
        policy, keep, positions, **options: of the draft, as in `apply_pruning`.
        pixels: inputs of the prompt, as a processor of the draft's makes them, of which the draft encodes the pictures
            itself: `pixel_values`, `image_grid_thw` and so on; all else in it is ignored. Such a draft is for this
            prompt. None: the draft gets the features that the model has computed, which takes no time, and needs a
            policy that reads no more than these and the text.

    Returns:
        the draft. Its `generation_config` is a copy of the model's: `num_assistant_tokens` and so on go there.

    Raises:
        UnknownPolicyError, UnsupportedModelError: as in `apply_pruning`.
        ValueError: as in `apply_pruning`; a model without `generate`; without `pixels`, a policy that reads the vision
            encoder or acts before or in it; `pixels` without pixel values.
    """
    family_of(model)
    if not hasattr(model, "generate") or not hasattr(model, "get_output_embeddings"):
        raise ValueError(
            f"{type(model).__name__} has no generate(), so it cannot draft; give the whole model, with its head"
        )
    if pixels is not None and not (
        isinstance(pixels, Mapping) and any(name.startswith("pixel_values") for name in pixels)
    ):
        raise ValueError("pixels must be a mapping with pixel_values or pixel_values_videos, as a processor returns it")
    memo: dict[int, Any] = {id(each): each for each in itertools.chain(model.parameters(), model.buffers())}
    made = remove_pruning(copy.deepcopy(model, memo))
    apply_pruning(made, policy, keep, positions=positions, **options)
    status = pruning_status(made)
    assert status is not None
    if pixels is None:
        for stage in status.stages:
            if stage.stage in (Stage.PIXELS, Stage.ENCODER) or (
                stage.stage == Stage.VISION and stage.policy.encoder_spec() is not None
            ):
                raise ValueError(
                    f"policy {stage.policy.label!r} reads the vision encoder or acts before or in it, and a draft gets "
                    "the features that its model has computed; accepted: a policy that reads tokens alone, as "
                    "'divprune', or pixels=inputs"
                )
    else:
        setattr(made, OWN_PIXELS, {name: value for name, value in pixels.items() if _is_of_pictures(name)})
    return made


def _is_of_pictures(name: str) -> bool:
    return name.startswith(("pixel_", "image_", "video_", "second_per_grid"))
