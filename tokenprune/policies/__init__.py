"""Pruning policies, one file each."""

from .base import Policy, UnknownPolicyError, make_policy, register, registry
from .cdpruner import CDPruner
from .divprune import DivPrune
from .eadp import EADP
from .fastv import FastV
from .fopru import FoPru
from .grid import Grid
from .holov import HoloV
from .mmtok import MMTok
from .prumerge import PruMerge, PruMergePlus
from .random import Random
from .recoverable import Recoverable
from .scope import Scope
from .todre import ToDRE
from .tokenflex import TokenFlex
from .visionzip import VisionZip
from .vispruner import VisPruner

__all__ = [
    "EADP",
    "CDPruner",
    "DivPrune",
    "FastV",
    "FoPru",
    "Grid",
    "HoloV",
    "MMTok",
    "Policy",
    "PruMerge",
    "PruMergePlus",
    "Random",
    "Recoverable",
    "Scope",
    "ToDRE",
    "TokenFlex",
    "UnknownPolicyError",
    "VisPruner",
    "VisionZip",
    "make_policy",
    "register",
    "registry",
]
