"""At which stages before and inside its vision encoder a family lets policies act, from its facts."""

from __future__ import annotations

from typing import Literal

from ...policies.base import Policy
from ...policies.registration import has_defaults, registry
from ...policies.stages import Stage
from .base import Family


def before_encoder(family: Family) -> Literal["any budget", "a number"] | None:
    """Whether tokens can leave before the first layer; `"a number"`: not as many as a policy finds. None: they cannot.

    In Qwen-like towers it takes transformers 5.9 or later.
    """
    facts = family.encoder
    if facts is None:
        return None
    if any(each is not None for each in (facts.packed_tower, facts.pixtral, facts.positioned_tower)):
        return "any budget"
    by_picture = facts.patch_conv is not None or (facts.layers is not None and facts.projector is not None)
    return "a number" if by_picture else None


def restores(policy: Policy) -> bool:
    """Whether what it drops inside the encoder comes back behind it."""
    return type(policy).restoration is not Policy.restoration


def inside_encoder(family: Family) -> tuple[str, ...]:
    """Names of the registered policies that can act between the encoder's layers.

    Policies with an option that has no default are left out. In Qwen-like towers it takes transformers 5.9 or later.
    """
    policies = {name: cls() for name, cls in registry().items() if has_defaults(cls)}
    acting = {name: policy for name, policy in policies.items() if policy.stages == (Stage.ENCODER,)}
    return tuple(name for name, policy in acting.items() if _acts_inside(policy, family))


def _acts_inside(policy: Policy, family: Family) -> bool:
    facts = family.encoder
    if facts is None:
        return False
    if facts.packed_tower is not None:
        return restores(policy) or policy.chooses_groups
    if facts.pixtral is not None:
        return not restores(policy) and policy.chooses_groups
    return facts.layers is not None or (restores(policy) and facts.raster_layers is not None)
