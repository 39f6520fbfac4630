"""Pruning policies, one file each."""

from .base import Policy, UnknownPolicyError, make_policy, register, registry
from .divprune import DivPrune
from .fopru import FoPru
from .grid import Grid
from .random import Random

__all__ = [
    "DivPrune",
    "FoPru",
    "Grid",
    "Policy",
    "Random",
    "UnknownPolicyError",
    "make_policy",
    "register",
    "registry",
]
