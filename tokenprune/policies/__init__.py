"""Pruning policies, one file each."""

from .base import Policy, UnknownPolicyError, make_policy, register, registry
from .divprune import DivPrune
from .grid import Grid
from .random import Random

__all__ = [
    "DivPrune",
    "Grid",
    "Policy",
    "Random",
    "UnknownPolicyError",
    "make_policy",
    "register",
    "registry",
]
