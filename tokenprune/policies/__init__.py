"""Pruning policies, one file each."""

from .base import Policy, UnknownPolicyError, make_policy, register, registry
from .divprune import DivPrune
from .fastv import FastV
from .fopru import FoPru
from .grid import Grid
from .random import Random
from .recoverable import Recoverable
from .todre import ToDRE
from .tokenflex import TokenFlex

__all__ = [
    "DivPrune",
    "FastV",
    "FoPru",
    "Grid",
    "Policy",
    "Random",
    "Recoverable",
    "ToDRE",
    "TokenFlex",
    "UnknownPolicyError",
    "make_policy",
    "register",
    "registry",
]
