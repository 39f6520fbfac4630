"""Which policies the oracles run on which model families.

`make test` runs every family on a few policies, and every policy on a few families. `make fuzz` sets FULL=1, and
every policy runs on every family.
"""

import os
from collections.abc import Collection, Iterable

FULL = os.environ.get("FULL") == "1"

#: Families that every policy runs on: 1-D positions, mRoPE positions, and masks that are built above the text model.
FAMILIES_OF_ALL_POLICIES = ("llava", "qwen2_5_vl", "gemma3")

#: Policies that every family runs on. What a family states is read as follows:
#: - `divprune` only selects: placeholders, positions, masks, further inputs of the text model;
#: - `tokenflex` pools: rasters and newlines, features before the projector and the projector itself;
#: - `visionzip` merges: attention and keys of the layer whose output the projector reads, mapped to tokens;
#: - `recoverable` merges by the question: the same of the encoder's last layer, with the heads joined.
POLICIES_OF_ALL_FAMILIES = ("divprune", "tokenflex", "visionzip", "recoverable")


def product(
    families: Iterable[str],
    policies: Iterable[str],
    of_all_policies: Collection[str] = FAMILIES_OF_ALL_POLICIES,
    of_all_families: Collection[str] = POLICIES_OF_ALL_FAMILIES,
) -> list[tuple[str, str]]:
    """Pairs of a family and a policy's label.

    Args:
        families: all families.
        policies: labels of all policies.
        of_all_policies: the families that every policy runs on.
        of_all_families: the policies that every family runs on.
    """
    policies = list(policies)
    return [
        (family, policy)
        for family in families
        for policy in policies
        if FULL or family in of_all_policies or policy in of_all_families
    ]
