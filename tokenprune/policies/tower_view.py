"""What a policy gets between two layers of the vision encoder, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class TowerView:
    """A batch of images, or of tiles of images, of one size, between two layers of the vision encoder.

    Towers that make one token of several patches have `group` above 1. Every `group` rows of `hidden`, `query`, `key`,
    `value` and `sizes` that follow each other are the patches of one token then. They leave or stay together. One
    picture or video frame is a batch of its own, in the order of the tower, which has tokens window by window if it
    has windows.

    Attributes:
        hidden: (B, M, D), the hidden states that the layer above gets. Token 0 is the CLS token if there is one.
        query, key, value: (B, H, M, d) of the layer below, as its attention function got them.
        scaling: factor of the attention scores in that layer.
        cls: whether there is a CLS token. It has to stay.
        sizes: (B, M) float32 or wider, how many patches each token stands for; 0 for one that has left and pads its
            image to the length of the others.
        cut: number of this border between layers, from 0.
        n_cuts: number of borders at which tokens may be dropped.
        n_before: tokens of an image at the first border, without the CLS token.
        n_keep: how many tokens have to be left after the last border, without the CLS token.
        memory: a dictionary for the policy's own use, kept from border to border of one call.
        before: (B, M, D), the hidden states that the layer below got, for a policy that restores; None otherwise.
        group: patches that become one token. `n_before`, `n_keep` and `TowerCut.keep` count tokens.
    """

    hidden: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    cls: bool
    sizes: Tensor
    cut: int
    n_cuts: int
    n_before: int
    n_keep: int
    memory: dict[str, Any]
    group: int = 1
    before: Tensor | None = None

    @property
    def surplus(self) -> int:
        """How many tokens still have to be dropped."""
        return self.hidden.shape[1] // self.group - int(self.cls) - self.n_keep


@dataclass(frozen=True)
class TowerCut:
    """What stays at such a border.

    Attributes:
        keep: (B, M') int64, indices of tokens that stay, ascending, the CLS token included.
        hidden: (B, M', D) new hidden states of these tokens; None: unchanged.
        sizes: (B, M') float32, how many patches each stands for now; None: unchanged.
        has_pads: whether some sizes are 0. Where images keep different numbers of tokens, the shorter ones are padded
            with tokens of size 0. Attention does not see them, and none may be left after the last border.
    """

    keep: Tensor
    hidden: Tensor | None = None
    sizes: Tensor | None = None
    has_pads: bool = False


@dataclass(frozen=True)
class Restoration:
    """How patches that leave inside the vision encoder come back behind it.

    A patch that left is rebuilt as its hidden state when it left, plus the mean change since then of its nearest
    neighbours among those that stayed.

    Attributes:
        layer: index of the layer in front of which patches leave, from 1 to the last.
        stabilised: how many layers from there on attend to all patches, and compute their MLP for those that stayed.
        neighbours: how many of those that stayed a patch is rebuilt from, at most.
    """

    layer: int
    stabilised: int
    neighbours: int
