"""Whether and how a model is pruned, for users to look at."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ..adaptive_budget import CoverageBudget, EnergyBudget
from ..budget import Budget, IntermediateBudget, PolicysBudget, TokenBudget
from ..mean_budget import MeanBudget, MeanBudgetBefore
from ..policies.base import Policy
from ..policies.stages import Stage
from .config import Positions
from .kept_history import History
from .pruner import Pruner


@dataclass(frozen=True)
class StageStatus:
    """What acts at one stage.

    Attributes:
        stage: where.
        policy: who chooses tokens there, with its options.
        budget: how many of a visual input's tokens are left after it.
    """

    stage: Stage
    policy: Policy
    budget: TokenBudget

    def __str__(self) -> str:
        return f"{self.stage} stage: {self.policy!r} keeps {_budget(self.budget)}"


@dataclass(frozen=True)
class PruningStatus:
    """How a model is pruned. Printed, it is a few lines of text.

    Attributes:
        model_type: `config.model_type` of the model.
        stages: what acts, in the order in which tokens pass.
        positions: `"original"` or `"compact"` position ids of surviving tokens.
        since: when `apply_pruning` or `pruning` was called, local time with its zone.
        history: what becomes of pictures of earlier turns; None: they stay as they are.
    """

    model_type: str
    stages: tuple[StageStatus, ...]
    positions: Positions
    since: datetime
    history: History | None = None

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies in the order in which they act; one that acts at several stages is there once."""
        return tuple({id(each.policy): each.policy for each in self.stages}.values())

    def __str__(self) -> str:
        head = f"{self.model_type}, pruned since {self.since:%Y-%m-%d %H:%M:%S}, {self.positions} positions"
        earlier = [] if self.history is None else [f"  pictures of earlier turns: {self.history}"]
        return "\n".join([head, *(f"  {stage}" for stage in self.stages), *earlier])


def status_of(pruner: Pruner) -> PruningStatus:
    """The status of the model that a pruner is attached to."""
    config = pruner.config
    acting = {
        Stage.PIXELS: config.pixels,
        Stage.ENCODER: config.encoder,
        Stage.VISION: config.vision,
        Stage.DECODER: config.decoder,
    }
    return PruningStatus(
        model_type=config.base.config.model_type,
        stages=tuple(StageStatus(stage, *each) for stage, each in acting.items() if each is not None),
        positions=config.positions,
        since=pruner.since,
        history=config.history,
    )


def _budget(budget: TokenBudget) -> str:
    if isinstance(budget, PolicysBudget):
        return "as many tokens as it finds necessary"
    if isinstance(budget, EnergyBudget):
        return f"as many tokens as singular values hold {budget.share:g} of their energy"
    if isinstance(budget, CoverageBudget):
        return f"as many tokens as cover {budget.share:g} of the input"
    if isinstance(budget, IntermediateBudget):
        keep, exponent = budget.final.keep, budget.exponent
        if isinstance(keep, int):
            return f"a number of tokens between all and {keep}"
        return f"{keep**exponent:.3g} of the tokens"
    if isinstance(budget, MeanBudgetBefore):
        return f"a number of tokens on the way to {_budget(budget.mean)}"
    if isinstance(budget, MeanBudget):
        return f"{_budget(budget.budget)} in the mean over {budget.cuts.n_layers} layers"
    if isinstance(budget, Budget):
        return f"{budget.keep} tokens" if isinstance(budget.keep, int) else f"{budget.keep:.3g} of the tokens"
    return repr(budget)
