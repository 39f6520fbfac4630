"""The table of supported models, from the families that come with tokenprune."""

from __future__ import annotations

from tokenprune.eval.files import markdown_table
from tokenprune.patches import families
from tokenprune.patches.families.acting import before_encoder, inside_encoder
from tokenprune.patches.families.base import Family


def built_in() -> dict[str, Family]:
    """Families by model type, without those of installed packages; all of them, whatever transformers is installed."""
    found = [module.FAMILY for module in vars(families).values() if hasattr(module, "FAMILY")]
    return {model_type: family for family in found for model_type in family.model_types}


def _facts(family: Family) -> tuple[str, ...]:
    return (
        ", ".join(f"{kind}s" for kind in family.kinds),
        "1-D" if family.positions == "1d" else "mRoPE",
        f"{family.default_keep:g}",
        {"any budget": "yes", "a number": "with a budget", None: ""}[before_encoder(family)],
        ", ".join(f"`{name}`" for name in inside_encoder(family)),
        "yes" if family.no_decoder_stage is None else "",
    )


def models() -> str:
    """One row for the model types of which the same holds."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for model_type, family in sorted(built_in().items()):
        rows.setdefault(_facts(family), []).append(f"`{model_type}`")
    heads = ("model type", "inputs", "positions", "default keep", "pixels stage", "encoder stage", "decoder stage")
    lines = [(", ".join(names), *facts) for facts, names in sorted(rows.items(), key=lambda row: row[1])]
    return "\n".join(markdown_table(heads, "l" * len(heads), lines)) + "\n"
