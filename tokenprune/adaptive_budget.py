"""Budgets that are found for each visual input, from its tokens. Importing this module does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "energy:"
_ACCEPTED = "accepted: 'energy:SHARE' with a share in (0, 1], as 'energy:0.98'"


class AdaptiveBudget:
    """How many tokens of a visual input stay, found from the tokens: `apply_pruning(model, "divprune", MyBudget())`.

    Subclass it and define `tokens`. It goes with every policy that acts at the vision stage alone, and in a list of
    budgets with such a policy of a list. The policy then chooses as many as with a number.
    """

    @property
    def keeps_all(self) -> bool:
        """False: how much stays is not known beforehand."""
        return False

    def count(self, n: int) -> None:
        """None: the number of an input's tokens does not say it."""
        return None

    def tokens(self, features: Tensor) -> int:
        """How many stay of one visual input, an image or a video.

        Args:
            features: (N, D), its tokens after the projector, without newline tokens, and without those that left inside
                the vision encoder. It must not be changed in place.

        Returns:
            1 to N.
        """
        raise NotImplementedError

    def checked(self, features: Tensor) -> int:
        """`tokens`, checked.

        Raises:
            ValueError: for anything but an int in 1 to N.
        """
        found: Any = self.tokens(features)
        if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= len(features):
            raise ValueError(f"{self!r}.tokens must return an int from 1 to {len(features)}, got {found!r}")
        return found


@dataclass(frozen=True)
class EnergyBudget(AdaptiveBudget):
    """As many tokens as singular values of the token matrix that hold a share of its energy (E-AdaPrune,
    arXiv:2603.05950). `keep="energy:0.98"` is `EnergyBudget(0.98)`.

    The energy is the sum of the squared singular values of the (N, D) tokens. The number is the least K whose K largest
    hold `share` of it, to a millionth. Pictures whose tokens repeat keep few. The paper approximates the values by a
    randomised SVD; here they are exact, from the smaller of the two Gram matrices in float32.

    Args:
        share: in (0, 1].

    Raises:
        ValueError: for anything else.
    """

    share: float

    def __post_init__(self) -> None:
        share = self.share
        number = isinstance(share, Real) and not isinstance(share, bool)
        if not (number and math.isfinite(share) and 0 < share <= 1):
            raise ValueError(f"share={share!r} must be a share of the energy in (0, 1]")
        object.__setattr__(self, "share", float(share))

    def tokens(self, features: Tensor) -> int:
        import torch

        tokens = features.detach().float()
        gram = tokens @ tokens.T if len(tokens) <= tokens.shape[1] else tokens.T @ tokens
        energies = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).double()
        below = energies.cumsum(0) < self.share * energies.sum() * (1 - 1e-6)
        return min(len(tokens), int(below.sum()) + 1)

    def __str__(self) -> str:
        return f"{_PREFIX}{self.share:g}"


def parsed(keep: Any) -> Any:
    """A budget as text turned into an `EnergyBudget`, also in a list of budgets; all else as it is.

    Raises:
        ValueError: text that begins with `energy:` and goes on otherwise.
    """
    if isinstance(keep, list | tuple) and any(isinstance(each, str) for each in keep):
        return [parsed(each) for each in keep]
    if not isinstance(keep, str) or not keep.startswith(_PREFIX):
        return keep
    try:
        return EnergyBudget(float(keep.removeprefix(_PREFIX)))
    except ValueError:
        raise ValueError(f"keep={keep!r} is no budget; {_ACCEPTED}") from None
