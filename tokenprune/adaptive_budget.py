"""Budgets that are found for each visual input, from its tokens. Importing this module does not import torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

_ENERGY, _COVERAGE = "energy:", "coverage:"
_EXAMPLES = {_ENERGY: "0.98", _COVERAGE: "0.95"}
_ROUNDING = 1e-3  # length of a centred token, over its length before, below which it is rounding
_FIRST = 64  # tokens that are picked at first to see how much they cover


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
class _ShareBudget(AdaptiveBudget):
    """As many tokens as reach a share of something, which is written as `NAME:SHARE`."""

    share: float
    of: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", _share(self.share, self.of))

    def __str__(self) -> str:
        return f"{self.of}:{self.share:g}"


@dataclass(frozen=True)
class EnergyBudget(_ShareBudget):
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

    of: ClassVar[str] = "energy"

    def tokens(self, features: Tensor) -> int:
        import torch

        tokens = _finite(features)
        gram = tokens @ tokens.T if len(tokens) <= tokens.shape[1] else tokens.T @ tokens
        energies = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).double()
        below = energies.cumsum(0) < self.share * energies.sum() * (1 - 1e-6)
        return min(len(tokens), int(below.sum()) + 1)


@dataclass(frozen=True)
class CoverageBudget(_ShareBudget):
    """As many tokens as cover a share of the input. `keep="coverage:0.95"` is `CoverageBudget(0.95)`.

    Tokens are centred: their mean over the input is subtracted. A set of tokens covers a token by the largest cosine
    similarity of the centred ones, at least 0 (the coverage of CoverPruner, arXiv:2609.03158, with equal weights). The
    number is that of the tokens which greedy selection adds until the mean coverage of all tokens is `share`, to a
    millionth, or of all tokens if they do not get there. Pictures whose tokens repeat keep few. Tokens that differ from
    the mean by rounding alone, less than a thousandth of their length, are covered from the start, so that a picture of
    one colour keeps one.

    The tokens that are counted need not be those that stay: the policy chooses these.

    Args:
        share: in (0, 1].

    Raises:
        ValueError: for anything else.
    """

    of: ClassVar[str] = "coverage"

    def tokens(self, features: Tensor) -> int:
        from .ops import token_coverage_select

        tokens = _finite(features)
        centred = tokens - tokens.mean(0)
        alike = centred.norm(dim=1) <= _ROUNDING * tokens.norm(dim=1)
        tokens, n_alike = centred[~alike], int(alike.sum())
        enough_left = self.share * len(alike) * (1 - 1e-6) - n_alike
        if enough_left <= 0:
            return 1
        n, most, counted = len(tokens), _FIRST, 0
        running: Tensor | None = None
        while counted < n:  # the first picks of more picks are those of fewer
            most = min(n, most)
            picks = token_coverage_select(tokens[None], most)[0, counted:]
            covered = _covered(tokens, picks, running)
            enough = covered.sum(1) >= enough_left
            if enough.any():
                return counted + int(enough.int().argmax()) + 1
            counted, most, running = most, 2 * most, covered[-1]
        return n


def _finite(features: Tensor) -> Tensor:
    """(N, D) float32.

    Raises:
        ValueError: where a token is not finite.
    """
    tokens = features.detach().float()
    if not bool(tokens.isfinite().all()):
        raise ValueError("a budget that is found from the tokens needs finite ones, and some are NaN or infinite")
    return tokens


def _covered(tokens: Tensor, picks: Tensor, before: Tensor | None) -> Tensor:
    """How well (N, D) tokens are covered after each of P picks, (P, N), float32.

    Args:
        tokens: centred.
        picks: (P,) indices in the order picked.
        before: (N,) how well they were covered before; None: not at all.
    """
    from torch.nn.functional import normalize

    units = normalize(tokens, dim=1)
    similar = (units[picks] @ units.T).clamp(min=0)
    if before is not None:
        similar[0] = similar[0].maximum(before)
    return similar.cummax(0).values


def _share(share: Any, of: str) -> float:
    number = isinstance(share, Real) and not isinstance(share, bool)
    if not (number and math.isfinite(share) and 0 < share <= 1):
        raise ValueError(f"share={share!r} must be a share of the {of} in (0, 1]")
    return float(share)


#: Budgets that can be written as text, by how the text begins.
KINDS: dict[str, Callable[[float], EnergyBudget | CoverageBudget]] = {_ENERGY: EnergyBudget, _COVERAGE: CoverageBudget}


def kind_of(keep: Any) -> str | None:
    """How a budget as text begins, as "energy:"; None: it is no such text."""
    return next((kind for kind in KINDS if isinstance(keep, str) and keep.startswith(kind)), None)


def parsed(keep: Any) -> Any:
    """A budget as text turned into an `EnergyBudget` or a `CoverageBudget`, also in a list of budgets; all else as it
    is.

    Raises:
        ValueError: text that begins with `energy:` or `coverage:` and goes on otherwise.
    """
    if isinstance(keep, list | tuple) and any(isinstance(each, str) for each in keep):
        return [parsed(each) for each in keep]
    kind = kind_of(keep)
    if kind is None:
        return keep
    try:
        return KINDS[kind](float(keep.removeprefix(kind)))
    except ValueError:
        accepted = f"accepted: '{kind}SHARE' with a share in (0, 1], as '{kind}{_EXAMPLES[kind]}'"
        raise ValueError(f"keep={keep!r} is no budget; {accepted}") from None
