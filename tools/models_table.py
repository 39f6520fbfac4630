"""The table of supported models, from the families that come with tokenprune."""

from __future__ import annotations

from tokenprune.eval.files import markdown_table
from tokenprune.patches import families
from tokenprune.patches.families.base import Family


def built_in() -> dict[str, Family]:
    """Families by model type, without those of installed packages; all of them, whatever transformers is installed."""
    found = [module.FAMILY for module in vars(families).values() if hasattr(module, "FAMILY")]
    return {model_type: family for family in found for model_type in family.model_types}


def _facts(family: Family) -> tuple[str, ...]:
    yes = lambda condition: "yes" if condition else ""
    encoder = family.encoder is not None and family.encoder.layers is not None
    own = family.encoder is not None and (family.encoder.pixtral or family.encoder.positioned_tower) is not None
    tiles = family.encoder is not None and family.encoder.patch_conv is not None
    raster = family.encoder is not None and family.encoder.raster_layers is not None
    packed = family.encoder is not None and family.encoder.packed_tower is not None
    return (
        ", ".join(f"{kind}s" for kind in family.kinds),
        "1-D" if family.positions == "1d" else "mRoPE",
        f"{family.default_keep:g}",
        "yes" if packed or own else "with a budget" if encoder or tiles else "",
        "`flowcut`" if packed else "`ipcv`" if raster else yes(encoder),
        yes(family.no_decoder_stage is None),
    )


def models() -> str:
    """One row for the model types of which the same holds."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for model_type, family in sorted(built_in().items()):
        rows.setdefault(_facts(family), []).append(f"`{model_type}`")
    heads = ("model type", "inputs", "positions", "default keep", "pixels stage", "encoder stage", "decoder stage")
    lines = [(", ".join(names), *facts) for facts, names in sorted(rows.items(), key=lambda row: row[1])]
    return "\n".join(markdown_table(heads, "l" * len(heads), lines)) + "\n"
