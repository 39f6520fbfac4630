"""Pruning policies, one file each.

To add one: write a dataclass that derives from `Policy` (`base.py`), with `@register("name")` (`registration.py`) above
it, and import it here. Its fields are the options; `__post_init__` checks them with `tokenprune/validate.py`. It
overrides `select`, which gets one image or video frame (`VisualTokens`) and returns a `Selection` (`types.py`). Three
bases leave less to write: `BatchedPolicy` (`select_many`, one op call for a batch), `ScheduledPolicy` (drops at
several decoder layers) and `Policy` itself for all else. Policies outside this package use an entry point instead of
the import: `examples/custom_policy`.

Helpers: `greedy.py` (greedy ops on inputs of several sizes), `merging.py` (averages of tokens), `relevance.py`
(similarity to the question), `spacing.py` (evenly spaced indices), and `apportion` in `tokenprune/budget.py` (whole
shares of a budget). The library calls policies through `run.py`, checks what they return in `answers.py` and where
they cut in `cuts.py`, and names the stages in `stages.py`. Settings of papers are presets (`presets.py`). `renamed.py`
keeps former names of methods working.
"""

from .at_pixels import AtPixels
from .auto import Auto
from .base import BatchedPolicy, Policy
from .cdpruner import CDPruner
from .coverpruner import CoverPruner
from .dart import DART
from .divprune import DivPrune
from .downsample import Downsample
from .eadp import EADP
from .erase import Erase
from .evs import EVS
from .fastv import FastV
from .fastvid import FastVID
from .flashvid import FlashVID
from .flowcut import FlowCut
from .fopru import FoPru
from .grid import Grid
from .holitom import HoliTom
from .holov import HoloV
from .ipcv import IPCV
from .mmtok import MMTok
from .pixelprune import PixelPrune
from .presets import Preset
from .priortr import PriorTR
from .prumerge import PruMerge, PruMergePlus
from .pyramiddrop import PyramidDrop
from .random import Random
from .recoverable import Recoverable
from .registration import UnknownPolicyError, make_policy, register, registry
from .rlt import RLT
from .scheduled import ScheduledPolicy
from .scope import Scope
from .sieve import Sieve
from .sparsevlm import SparseVLM
from .stages import Stage
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
    "IPCV",
    "RLT",
    "VTW",
    "AtPixels",
    "Auto",
    "BatchedPolicy",
    "CDPruner",
    "CoverPruner",
    "DivPrune",
    "Downsample",
    "Erase",
    "FastV",
    "FastVID",
    "FlashVID",
    "FlowCut",
    "FoPru",
    "Grid",
    "HoliTom",
    "HoloV",
    "MMTok",
    "PixelPrune",
    "Policy",
    "Preset",
    "PriorTR",
    "PruMerge",
    "PruMergePlus",
    "PyramidDrop",
    "Random",
    "Recoverable",
    "ScheduledPolicy",
    "Scope",
    "Sieve",
    "SparseVLM",
    "Stage",
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
