"""A vision-stage policy at the pixels stage: it chooses among patch embeddings, before the vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .base import Policy
from .stages import Stage
from .types import Selection, VisualTokens


def acts_at_pixels(policy: Policy) -> str | None:
    """Why a policy cannot choose among patch embeddings; None if it can."""
    if policy.stages != (Stage.VISION,):
        return f"it acts at the stage {policy.stage!r}"
    if policy.needs or policy.encoder_spec() is not None:
        return "it reads the text or the vision encoder"
    return None


@dataclass
class AtPixels(Policy):
    """A vision-stage policy that chooses before the vision tower, as `apply_pruning(model, "divprune@pixels")`.

    A token's features are then the mean of the tower's embeddings of its patches, without positions. The policy has to
    be one that reads features and rasters only, and that gives no new features.

    Args:
        policy: chooses the tokens.

    Raises:
        TypeError: if it is no policy.
        ValueError: if it acts at another stage, or reads something that there is not before the tower.
    """

    policy: Policy
    stage: ClassVar[Literal["pixels"]] = "pixels"

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy):
            raise TypeError(f"AtPixels takes a Policy instance, got {self.policy!r}")
        reason = acts_at_pixels(self.policy)
        if reason is not None:
            raise ValueError(
                f"policy {self.policy.label!r} cannot act before the vision tower: {reason}; accepted: policies of the "
                "vision stage that read features only, as divprune@pixels and grid@pixels"
            )

    @property
    def label(self) -> str:
        return f"{self.policy.label}@pixels"

    @property
    def exact(self) -> bool:
        return self.policy.exact

    @property
    def budget_weight(self) -> float:
        return 2 * self.policy.budget_weight  # twice, as of all policies that act there

    @property
    def chooser(self) -> Policy:
        return self.policy

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        return self.policy.select(tokens, n_keep)
