"""Fewer layers of a vision encoder, of the same kinds: to fit, or to have the decoder's share of a published model."""

from __future__ import annotations

from typing import Any

#: Fewest layers that are built in proportion: some models read the last but one.
_LEAST = 2
#: Attributes of a config that name some of the layers.
_NAMED = ("fullatt_block_indexes", "deepstack_visual_indexes")


def with_vision_layers(config: Any, layers: int) -> Any:
    """A config whose vision encoder has fewer layers.

    Layers that attend to the whole picture, and those whose output goes to the decoder, stay in proportion: their
    number is rounded, one at least, and they are evenly spaced, the last one at the end.

    Args:
        config: of a model; it is changed.
        layers: of the vision encoder, at most as many as it has.

    Returns:
        The same config.

    Raises:
        ValueError: it has fewer layers.
    """
    vision: Any = config.vision_config
    name = _depth_of(config)
    before: int = getattr(vision, name)
    if layers > before:
        raise ValueError(f"--vision-layers {layers}: the vision encoder of this model has {before} layers")
    if layers == before:
        return config
    setattr(vision, name, layers)
    for named in _NAMED:
        count = len(getattr(vision, named, None) or ())
        if count:
            setattr(vision, named, evenly(max(1, round(count * layers / before)), layers))
    return config


def in_proportion(config: Any, share: float) -> int:
    """Layers of a config's vision encoder that are this share of all, two at least."""
    before: int = getattr(config.vision_config, _depth_of(config))
    return min(before, max(_LEAST, round(share * before)))


def _depth_of(config: Any) -> str:
    return "depth" if hasattr(config.vision_config, "depth") else "num_hidden_layers"


def evenly(count: int, layers: int) -> list[int]:
    """`count` indices of layers, evenly spaced, the last one at the end."""
    return [round((i + 1) * layers / count) - 1 for i in range(count)]
