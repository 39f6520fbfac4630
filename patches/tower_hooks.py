"""What the stages have in common that hang hooks on the vision encoder and act in its calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor, nn

from ..budget import Budget, IntermediateBudget, TokenBudget
from ..mean_budget import MeanBudgetBefore
from ..policies.answers import checked_cut
from ..policies.base import Policy
from ..policies.types import TowerCut, TowerView
from .attention_tap import AttentionTap
from .call import guarded


class StageCall(Protocol):
    """One call of the vision encoder.

    Attributes:
        stage: whose call it is.
    """

    @property
    def stage(self) -> object: ...


C = TypeVar("C", bound=StageCall)


class TowerHooks(Generic[C]):
    """Hooks on the vision encoder that act in the calls of one stage.

    Attributes:
        running: the call that runs in a thread. The stage before the encoder and the one inside it have one each, since
            both may be in one call.
    """

    running: ClassVar[ContextVar[Any]]
    _handles: list[Any]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def _during(self, call: C) -> Iterator[C]:
        """Let tokens leave in the encoder's calls of a block, in this thread alone."""
        token = self.running.set(call)
        try:
            yield call
        finally:
            self.running.reset(token)

    def _call(self) -> C | None:
        """The call that runs in this thread, if it is of this encoder."""
        call = self.running.get()
        return call if call is not None and call.stage is self else None


class InsideTower(TowerHooks[C]):
    """Hooks between the layers of the vision encoder, and taps on the attention that a policy reads there."""

    running: ClassVar[ContextVar[Any]] = ContextVar("tokenprune_encoder_call", default=None)
    policy: Policy
    _taps: list[AttentionTap]

    def detach(self) -> None:
        for tap in self._taps:
            tap.detach()
        super().detach()

    def _read(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> None:
        """Note what the attention of the layer below computes with."""
        call: Any = self._call()
        if call is not None:
            call.heads = (query, key, value, scaling_of(query, kwargs.get("scaling")))

    def _select(self, view: TowerView) -> TowerCut | None:
        """What the policy answers, its shapes and dtypes checked; None: all stay."""
        with guarded():
            return checked_cut(self.policy.label, view, self.policy.encoder_select(view))


def with_number(policy: Policy, budget: TokenBudget) -> Budget | IntermediateBudget | MeanBudgetBefore:
    """The budget of a policy that acts inside the tower.

    Raises:
        ValueError: where it has no number.
    """
    if isinstance(budget, Budget | IntermediateBudget | MeanBudgetBefore):
        return budget
    raise ValueError(
        f"policy {policy!r} acts inside the vision tower, where it cannot find its own number of tokens; give "
        "it one, as keep=0.25 or, in a list, keep=[0.5, 0.25]"
    )


def not_inside(policy: Policy, base: Any, reason: str | None, others: str = "") -> ValueError:
    """The error of a policy that cannot act inside the tower of this model.

    Args:
        policy: the policy.
        base: the base model.
        reason: why, as the end of a sentence.
        others: policies of the tower that can be used, each with "or" behind it.
    """
    return ValueError(
        f"policy {policy!r} acts inside the vision tower, which model type {base.config.model_type!r} does not allow: "
        f"{reason}; use {others}a policy that acts before the language model"
    )


def scaling_of(query: Tensor, scaling: float | None) -> float:
    """The factor of a kernel's scores of (..., d) queries; None: its default."""
    return float(query.shape[-1] ** -0.5) if scaling is None else scaling
