"""The stages at which policies act."""

from __future__ import annotations

from enum import Enum


class Stage(str, Enum):
    """A stage at which visual tokens can be dropped. Members are in the order in which tokens pass the stages.

    A member is equal to its value, so `"vision" in policy.stages` works.

    Attributes:
        PIXELS: before the first layer of the vision encoder, which never sees the tokens that leave.
        ENCODER: between layers of the vision encoder, or before it.
        VISION: between the projector and the language model.
        DECODER: before a decoder layer, during prefill.
    """

    PIXELS = "pixels"
    ENCODER = "encoder"
    VISION = "vision"
    DECODER = "decoder"

    __str__ = str.__str__  # the value, on every Python version


def parse_stages(declared: object) -> tuple[Stage, ...] | None:
    """Stages out of a declaration such as `"vision, decoder"`, in the order in which tokens pass them.

    Returns:
        None if it is not a string, or if it is empty, names an unknown stage, or names one twice.
    """
    names = declared.split(", ") if isinstance(declared, str) else []
    stages = tuple(stage for stage in Stage if stage in names)
    return stages if names and len(stages) == len(names) else None
