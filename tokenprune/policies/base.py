"""The policy interface and the registry of policies by name."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from ..budget import spread
from ..device import index_rows
from .answers import checked_selections
from .types import DecoderView, EncoderSpec, Selection, TowerCut, TowerView, VisualTokens

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "tokenprune.policies"


class UnknownPolicyError(ValueError):
    """The policy name is not registered."""


@dataclasses.dataclass
class Policy:
    """A way to choose visual tokens. Subclass as a dataclass: its fields are the hyper-parameters.

    Class attributes:
        name: set by `register`.
        stage: where the policy acts; `"encoder"` is between the layers of the vision tower, `"vision"`
            between projector and language model, `"decoder"` at a decoder layer during prefill,
            `"vision, decoder"` at both.
        needs: what it reads besides the projected tokens, of `"text"` and `"encoder_attention"` (which
            `encoder` spells out).
        exact: whether it keeps exactly the number it is asked for. Policies that keep whole rows or
            whole grids do not; their count is in the report.
        adaptive: whether it finds a number by itself when no budget is given.
        per_frame: whether a video's budget is spread over its frames, each selected on its own;
            otherwise `select` sees all frames of a video at once.
        paper: where the method comes from.
        keeps: in a few words, what it keeps.
        deviates: in a few words, where it differs from its paper or the paper's release.
    """

    name: ClassVar[str] = ""
    stage: ClassVar[Literal["encoder", "vision", "decoder", "vision, decoder"]] = "vision"
    needs: ClassVar[frozenset[str]] = frozenset()
    per_frame: ClassVar[bool] = True
    adaptive: ClassVar[bool] = False
    paper: ClassVar[str] = ""
    keeps: ClassVar[str] = ""
    deviates: ClassVar[str] = ""

    @property
    def label(self) -> str:
        """What errors call it: its name, or its class's where it is not registered."""
        return self.name or type(self).__name__

    @property
    def exact(self) -> bool:
        return True

    @property
    def proportional(self) -> bool:
        """Whether tokens of a vision tower that stand for several are as loud as they were."""
        return False

    @property
    def way(self) -> float:
        """How far it goes towards a budget that policies share, beside the others: policies of 1 and 3 go a quarter
        of the way, in ratios, and the rest."""
        return 1.0

    def resized(self, height: int, width: int, n_keep: int) -> tuple[int, int] | None:
        """Rows and columns of tokens that a picture of (height, width) tokens should be resized to before the
        vision tower, at the encoder stage; None: as it is. Its tokens stand at `places` then."""
        return None

    @staticmethod
    def places(height: int, width: int, rows: int, columns: int) -> list[int]:
        """For each token of a resized picture, row by row, a place of its own in the raster of the whole one."""
        raise NotImplementedError

    def tower_select(self, view: TowerView) -> TowerCut | None:
        """What stays at a border between two layers of the vision tower; None: all."""
        raise NotImplementedError

    def encoder(self) -> EncoderSpec | None:
        """What it wants to know of the vision encoder; None: nothing."""
        return None

    def deep_layers(self, n_layers: int, lowest: int) -> list[int]:
        """Decoder layers before which tokens may leave, ascending, of a model of `n_layers` that lets them
        leave from `lowest` on. One below it is an error of whoever asked for it."""
        return []

    def deep_select(self, view: DecoderView) -> list[Tensor] | None:
        """What stays at such a layer, in one row of the batch.

        Returns:
            per visual input a (N,) bool mask of its surviving tokens; None: all stay.
        """
        raise NotImplementedError

    def deep_select_many(self, views: Sequence[DecoderView]) -> list[list[Tensor] | None]:
        """`deep_select` for all rows of a batch; override where one call of an op serves them all."""
        return [self.deep_select(view) for view in views]

    def deeper(self) -> Policy | None:
        """A policy that goes on in the decoder where this one ends before it: they share a budget as policies of a
        list do. It is left out where tokens cannot leave a model's decoder, where another policy of a list acts
        there, and where a list of budgets says what each policy leaves."""
        return None

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        """Choose `n_keep` of the N tokens.

        Args:
            tokens: one visual input; 1 <= n_keep < N.
            n_keep: exact number of tokens to keep.

        Returns:
            ascending indices, and new features for them if the policy merges or pools.
        """
        raise NotImplementedError

    def select_many(self, tokens: Sequence[VisualTokens], n_keep: Sequence[int]) -> list[Selection]:
        """Choose for all visual inputs of a batch; override where one call of an op serves them all."""
        return [self.select(each, k) for each, k in zip(tokens, n_keep, strict=True)]


def select(policy: Policy, inputs: Sequence[VisualTokens], n_keep: Sequence[int | None]) -> list[Selection]:
    """Run a policy on all visual inputs of a batch, frame by frame where it asks for that, and check its answers.

    `n_keep` is None for an adaptive policy without a budget. Answers have their indices on the host: that is
    the one wait for the device.
    """
    frames = [tokens.frames() if policy.per_frame else [tokens] for tokens in inputs]
    shares = [
        [None] * len(parts) if k is None else spread(k, [len(frame) for frame in parts])
        for parts, k in zip(frames, n_keep, strict=True)
    ]
    # Where all or nothing is kept there is nothing to choose.
    jobs = [
        (i, j)
        for i, (parts, ks) in enumerate(zip(frames, shares, strict=True))
        for j, (frame, k) in enumerate(zip(parts, ks, strict=True))
        if k is None or 0 < k < len(frame)
    ]
    asked, counts = [frames[i][j] for i, j in jobs], [shares[i][j] for i, j in jobs]
    answers = policy.select_many(asked, counts) if jobs else []  # type: ignore[arg-type]
    expected = counts if policy.exact else [None] * len(counts)
    chosen = dict(zip(jobs, checked_selections(policy.label, answers, asked, expected), strict=True))
    return [
        _join([(frame, k, chosen.get((i, j))) for j, (frame, k) in enumerate(zip(parts, ks, strict=True))])
        for i, (parts, ks) in enumerate(zip(frames, shares, strict=True))
    ]


def _join(parts: list[tuple[VisualTokens, int | None, Selection | None]]) -> Selection:
    """The selection of an input out of those of its frames."""
    replaced = any(selection is not None and selection.features is not None for _, _, selection in parts)
    indices, features, start = [], [], 0
    for frame, k, selection in parts:
        if k != 0:
            selection = selection or Selection(torch.arange(len(frame)))
            indices.append(selection.indices + start)
            if replaced:
                own = selection.features
                features.append(index_rows(frame.features, selection.indices) if own is None else own)
        start += len(frame)
    return Selection(torch.cat(indices), torch.cat(features) if replaced else None)


#: Stages, in the order in which tokens pass them, and the methods of which a policy overrides one to act there.
STAGES = {
    "encoder": ("tower_select", "resized"),
    "vision": ("select", "select_many"),
    "decoder": ("deep_select", "deep_select_many"),
}


def check_policy(policy: Policy) -> None:
    """Raise `ValueError` for a policy that cannot act: an unknown stage, or a stage without the method for it."""
    stages = policy.stage.split(", ") if isinstance(policy.stage, str) else []
    if not stages or not set(stages) <= set(STAGES) or len(set(stages)) < len(stages):
        raise ValueError(
            f"policy {policy.label!r} has the unknown stage {policy.stage!r}; accepted: "
            f"{', '.join(map(repr, STAGES))}, or several of them joined by ', '"
        )
    for stage in stages:
        if all(getattr(type(policy), method) is getattr(Policy, method) for method in STAGES[stage]):
            raise ValueError(f"policy {policy.label!r} acts at the {stage} stage and must define {STAGES[stage][0]}()")


_REGISTRY: dict[str, type[Policy]] = {}
P = TypeVar("P", bound=type[Policy])


def register(name: str) -> Callable[[P], P]:
    """Class decorator that makes a policy reachable as `apply_pruning(model, name)`."""

    def decorate(cls: P) -> P:
        if not dataclasses.is_dataclass(cls) or not issubclass(cls, Policy):
            raise TypeError(f"{cls.__name__} must be a dataclass that derives from Policy")
        if _REGISTRY.setdefault(name, cls) is not cls:
            raise ValueError(f"a policy named {name!r} is already registered: {_REGISTRY[name]}")
        cls.name = name
        return cls

    return decorate


def registry() -> dict[str, type[Policy]]:
    """All policies by name: our own, and those of installed packages (entry points)."""
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name not in _REGISTRY:
            try:
                register(entry.name)(entry.load())
            except Exception as error:  # somebody else's package must not take our policies down
                logger.warning("policy %r of %s could not be loaded: %s", entry.name, entry.value, error)
    return dict(sorted(_REGISTRY.items()))


def make_policy(policy: str | Policy, **options: Any) -> Policy:
    """The policy of a name with its options, or a policy instance as it is.

    Raises:
        UnknownPolicyError: unknown name; the message lists the known ones and suggests the nearest.
        ValueError: an unknown option, or options beside a policy instance.
        TypeError: neither a name nor a policy.
    """
    if isinstance(policy, Policy):
        if options:
            raise ValueError(f"options {sorted(options)} go into the policy instance, not beside it: {policy!r}")
        return policy
    if not isinstance(policy, str):
        hint = " (an instance is wanted, not the class)" if isinstance(policy, type) else ""
        raise TypeError(f"policy must be a name or a Policy instance, got {policy!r}{hint}")
    known = registry()
    if policy not in known:
        near = difflib.get_close_matches(policy.lower(), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownPolicyError(f"unknown policy {policy!r}.{hint} Known policies: {', '.join(known)}")
    cls = known[policy]
    accepted = [f.name for f in dataclasses.fields(cls) if f.init]
    for option in options:
        if option not in accepted:
            takes = f"it takes: {', '.join(accepted)}" if accepted else "it takes none"
            raise ValueError(f"unknown option {option!r} for policy {policy!r}; {takes}")
    return cls(**options)
