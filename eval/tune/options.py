"""How to tune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...arguments import Positions
from ..videos import FRAMES
from .candidates import POLICIES, Candidate, default_candidates
from .metrics import METRICS, Score
from .sequence import Goal

#: What settings are compared by: time to the first token on this machine, or FLOPs of the language model's prefill.
Unit = Literal["time", "flops"]


@dataclass(frozen=True)
class Options:
    """How to tune.

    Args:
        tolerance: largest risk: the mean loss over all prompts that could be asked, in (0, 1).
        confidence: smallest probability that the risk of the chosen setting is within it, in (0, 1).
        policies: what is tried: policies as text, or settings from safe to cheap. None: `default_candidates`, without
            the counts that are found for each input if `keeps` are given.
        keeps: budgets of policies given as text. None: `KEEPS`.
        positions: of surviving tokens.
        metric: what a prompt loses: `"answer"`, `"tokens"`, `"kl"` or `"accuracy"`.
        score: of an answer against right ones, in [0, 1], for `accuracy`; None: exact match.
        cost: what is to be small: `"time"` to the first token, measured, or `"flops"`.
        minutes: after so long no further setting is tested; None: no limit.
        batch: prompts that are asked together.
        new_tokens: of an answer, at most.
        frames: of a video, evenly spaced; all if there are fewer.
        seed: of the order in which prompts are dealt to ranking and test.

    Raises:
        ValueError: an unknown metric, cost or score, or numbers out of range.
    """

    tolerance: float = 0.02
    confidence: float = 0.95
    policies: Sequence[Candidate] | None = None
    keeps: Sequence[float | int | str] | None = None
    positions: Sequence[Positions] = ("original",)
    metric: str = "answer"
    score: Score | None = None
    cost: Unit = "time"
    minutes: float | None = None
    batch: int = 16
    new_tokens: int = 32
    frames: int = FRAMES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric={self.metric!r} is unknown; accepted: {', '.join(map(repr, METRICS))}")
        if self.cost not in ("time", "flops"):
            raise ValueError(f"cost={self.cost!r} is unknown; accepted: 'time', 'flops'")
        if self.score is not None and self.metric != "accuracy":
            raise ValueError(f"score goes with metric='accuracy', not {self.metric!r}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes={self.minutes!r} must be a number > 0, or None")
        for name in ("batch", "new_tokens", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be >= 1")
        self.goal()

    def candidates(self) -> Sequence[Candidate]:
        """What is tried."""
        if self.policies is not None:
            return self.policies
        return POLICIES if self.keeps is not None else default_candidates()

    def goal(self) -> Goal:
        """What is to be certified."""
        return Goal(self.tolerance, self.confidence, METRICS[self.metric].binary and self.score is None)
