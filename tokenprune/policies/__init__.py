"""Pruning policies, one file each."""

from .auto import Auto
from .base import Policy, UnknownPolicyError, make_policy, register, registry
from .cdpruner import CDPruner
from .dart import DART
from .divprune import DivPrune
from .downsample import Downsample
from .eadp import EADP
from .evs import EVS
from .fastv import FastV
from .fastvid import FastVID
from .flowcut import FlowCut
from .fopru import FoPru
from .grid import Grid
from .holov import HoloV
from .mmtok import MMTok
from .prumerge import PruMerge, PruMergePlus
from .pyramiddrop import PyramidDrop
from .random import Random
from .recoverable import Recoverable
from .scope import Scope
from .sparsevlm import SparseVLM
from .todre import ToDRE
from .tokenflex import TokenFlex
from .tome import ToMe
from .vidcom2 import VidCom2
from .visionzip import VisionZip
from .vispruner import VisPruner
from .vtw import VTW

__all__ = [
    "DART",
    "EADP",
    "EVS",
    "VTW",
    "Auto",
    "CDPruner",
    "DivPrune",
    "Downsample",
    "FastV",
    "FastVID",
    "FlowCut",
    "FoPru",
    "Grid",
    "HoloV",
    "MMTok",
    "Policy",
    "PruMerge",
    "PruMergePlus",
    "PyramidDrop",
    "Random",
    "Recoverable",
    "Scope",
    "SparseVLM",
    "ToDRE",
    "ToMe",
    "TokenFlex",
    "UnknownPolicyError",
    "VidCom2",
    "VisPruner",
    "VisionZip",
    "make_policy",
    "register",
    "registry",
]
