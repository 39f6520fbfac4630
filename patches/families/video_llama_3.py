"""VideoLLaMA 3: any resolution; each image or video says how many of its patches become one token."""

from __future__ import annotations

from torch import Tensor

from ...policies.types import Grid
from .base import EncoderFacts, EncoderValues, Family, InputFacts, VisualShape
from .merged_patches import NO_ENCODER_STAGE, grids_of, mean_of_patches, merged_grid
from .registry import register_family
from .tower_layers import last_attention


def _merge(facts: InputFacts | EncoderValues, index: int) -> Grid | None:
    """Patches that become one token of an input; None where not known."""
    arguments = facts.arguments
    sizes = arguments.get(f"{facts.kind}_merge_sizes", arguments.get("image_merge_sizes"))
    return None if sizes is None else (1, int(sizes[index]), int(sizes[index]))


def shape(facts: InputFacts) -> VisualShape:
    """One raster for each input; none of a video of which the processor has left tokens out."""
    grids, merge = grids_of(facts.kind, facts.arguments), _merge(facts, facts.index)
    if grids is None or merge is None:
        return VisualShape()
    t, h, w = merged_grid(grids[facts.index], merge)
    return VisualShape(((t, h, w),) if t * h * w == facts.length else None)


def regroup(output: EncoderValues) -> list[Tensor]:
    """The mean over the patches that become one token, which stand in groups."""
    grids = grids_of(output.kind, output.arguments)
    pictures = output.values.flatten(0, 1).split([int(grid.prod()) for grid in grids])
    found = []
    for i, (picture, grid) in enumerate(zip(pictures, grids, strict=True)):
        merge = _merge(output, i)
        assert merge is not None
        found.append(mean_of_patches(picture, grid, merge, by_row=False))
    return found


FAMILY = register_family(
    Family(
        model_types=("video_llama_3",),
        default_keep=0.5,
        kinds=("image", "video"),
        shape=shape,
        encoder=EncoderFacts(attention=last_attention("vision_model.encoder.layers"), regroup=regroup),
        no_encoder_stage=NO_ENCODER_STAGE,
    )
)
