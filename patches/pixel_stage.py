"""Pixel-stage pruning: tokens leave before the first layer of the vision encoder, which gets cheaper by that.

The tower gets the patches that stay, with the positions that they have in the whole picture. Behind it the raster is
whole again, with zeros where tokens have left, so that the model lays its features out as always. Those zeros are
dropped before the language model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..budget import TokenBudget
from ..policies.answers import refuse_features
from ..policies.base import Policy
from ..policies.run import run_policy
from ..policies.types import Grid, VisualTokens
from ..stopwatch import Stopwatch
from .call import unchanged
from .encoder_activations import EncoderActivations
from .families.base import Family, Kind
from .packed_tower import KeptTokens, no_packed_geometry, patch_embeddings, whole_raster
from .tower_hooks import TowerHooks

logger = logging.getLogger(__name__)

_NAME = "pixels"


class Kept(Protocol):
    """Which tokens are left.

    Attributes:
        keep: (N,) bool on the host, by token of all inputs.
    """

    @property
    def keep(self) -> Tensor: ...

    def of_all(self, values: Tensor) -> Tensor:
        """(1, M, C) values of the patches that are left, as the tower has them, among all, with zeros elsewhere."""


@dataclass
class PixelCall:
    """One call of a vision encoder that takes the patches of all inputs as one sequence.

    Attributes:
        stage: whose call it is.
        kind: of the visual inputs.
        arguments: of the feature function, without pixels.
        kept: which tokens stay; None while all do.
        select_ms: time spent on choosing them, milliseconds.
    """

    stage: PixelStage
    kind: Kind
    arguments: Mapping[str, Any] = field(default_factory=dict)
    kept: Kept | None = None
    select_ms: float = 0.0

    def whole_raster(self, values: Tensor) -> Tensor:
        """(1, M, C) values of the patches that are left, as the tower has them, among all, with zeros elsewhere."""
        return values if self.kept is None else self.kept.of_all(values)


def entering(tower: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> KeptTokens:
    """The tokens that enter a tower in a call with these arguments: those that the pixels stage has left, or all."""
    call: PixelCall | None = PixelStage.running.get()
    if call is not None and call.stage.tower is tower and isinstance(call.kept, KeptTokens):
        return call.kept
    grids = (kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]).cpu()
    n = int(grids.prod(1).sum()) // tower.spatial_merge_size**2
    return KeptTokens(tower, grids, torch.ones(n, dtype=torch.bool))


class PixelStage(TowerHooks[PixelCall]):
    """Hooks on a vision tower that takes the patches of all inputs as one sequence.

    Args:
        base: the base model.
        family: its facts.
        policy: acts at the pixels stage.
        budget: of it.

    Raises:
        ValueError: where the model's vision tower, or this version of transformers, does not allow it.
    """

    running: ClassVar[ContextVar[Any]] = ContextVar("tokenprune_pixel_call", default=None)

    def __init__(self, base: nn.Module, family: Family, policy: Policy, budget: TokenBudget):
        self.policy, self.budget = policy, budget
        encoder, model_type = family.encoder, base.config.model_type  # type: ignore[union-attr]
        tower = None if encoder is None else encoder.packed_tower
        reason = family.no_pixel_stage if tower is None else no_packed_geometry()
        if tower is None or reason is not None:
            raise ValueError(
                f"policy {policy.label!r} acts before the vision tower, which model type {model_type!r} does not "
                f"allow: {reason}; use a policy that acts before the language model"
            )
        self.tower: Any = tower(base)
        self._handles: list[Any] = []

    def attach(self) -> None:
        self._handles.append(self.tower.register_forward_pre_hook(self._enter_tower, with_kwargs=True))
        self._handles.append(self.tower.register_forward_hook(self._leave_tower))

    def cutting(self, kind: Kind, arguments: Mapping[str, Any]) -> AbstractContextManager[PixelCall]:
        """Let tokens leave in the encoder's calls of a block, in this thread alone.

        Args:
            kind: of the visual inputs.
            arguments: of the feature function that runs in the block, without pixels.
        """
        return self._during(self._new_call(kind=kind, arguments=arguments))

    @staticmethod
    def mark_kept(call: PixelCall, activations: EncoderActivations, lengths: list[int]) -> None:
        """Note by visual input, of these numbers of tokens, which are left after a call of the feature function."""
        if call.select_ms:
            activations.select_ms[_NAME] = [call.select_ms * n / sum(lengths) for n in lengths]
        if call.kept is not None:
            activations.kept[_NAME] = list(call.kept.keep.split(lengths))

    def _new_call(self, **facts: Any) -> PixelCall:
        return PixelCall(self, **facts)

    def _enter_tower(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the tower: give it the patches of the tokens that stay."""
        call = self._call()
        if call is None:
            return None
        pixels, grid_thw, others = _arguments(args, kwargs)
        grids = grid_thw.cpu()
        watch = Stopwatch(pixels.device)
        keep = self._choose(call.kind, pixels, grids)
        call.select_ms = watch.ms()  # `run_policy` has waited for the device
        if bool(keep.all()):
            return None
        call.kept = kept = KeptTokens(self.tower, grids, keep)
        logger.debug("pixels stage: %d of %d tokens are left", int(keep.sum()), len(keep))
        left = pixels.index_select(0, kept.patches.to(pixels.device))
        return (left,), {"grid_thw": grid_thw, **kept.arguments(others, pixels.device)}

    def _choose(self, kind: Kind, pixels: Tensor, grids: Tensor) -> Tensor:
        """(N,) bool on the host, which tokens of all inputs stay."""
        merge = self.tower.spatial_merge_size
        shapes = [(t, h // merge, w // merge) for t, h, w in grids.tolist()]
        sizes = [t * h * w for t, h, w in shapes]
        by_input = pixels.split([n * merge**2 for n in sizes])
        with torch.no_grad(), unchanged(pixels, self.policy.label):
            return self._ask(
                sizes, lambda i: self._tokens(by_input[i], shapes[i], kind, sum(t for t, _, _ in shapes[:i]))
            )

    def _ask(self, sizes: Sequence[int], tokens_of: Callable[[int], VisualTokens]) -> Tensor:
        """(N,) bool on the host, which tokens of all inputs stay.

        Args:
            sizes: tokens of each input.
            tokens_of: what the policy sees of an input.
        """
        keeps = [torch.ones(n, dtype=torch.bool) for n in sizes]
        counts = [self.budget.count(n) for n in sizes]
        asked = [i for i, (n, k) in enumerate(zip(sizes, counts, strict=True)) if k is None or k < n]
        answers = run_policy(self.policy.chooser, [tokens_of(i) for i in asked], [counts[i] for i in asked])
        refuse_features(self.policy.label, answers)
        for i, answer in zip(asked, answers, strict=True):
            keeps[i] = torch.zeros(sizes[i], dtype=torch.bool).index_fill_(0, answer.indices, True)
        return torch.cat(keeps)

    def _tokens(self, pixels: Tensor, grid: Grid, kind: Kind, index: int) -> VisualTokens:
        """What the policy sees of one input, of its patches (N * merge ** 2, C)."""
        tower, unit = self.tower, self.tower.spatial_merge_size**2
        if self.policy.pixel_features == "embedded":
            return VisualTokens(patch_embeddings(tower, pixels), (grid,), kind, index)
        frames, area = tower.config.temporal_patch_size, tower.config.patch_size**2
        shape = unit, pixels.shape[1] // (frames * area), frames, area
        return VisualTokens(pixels.reshape(len(pixels) // unit, -1), (grid,), kind, index, pixel_shape=shape)

    def _leave_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After the tower: features of the whole raster, with zeros where tokens have left."""
        call = self._call()
        if call is None or not isinstance(call.kept, KeptTokens):
            return
        tokens, n = call.kept.tokens, len(call.kept.keep)
        output.pooler_output = whole_raster(output.pooler_output, tokens, n)
        planes = getattr(output, "deepstack_features", None)
        if planes is not None:
            output.deepstack_features = [whole_raster(plane, tokens, n) for plane in planes]


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Patches, grids, and all other arguments of a tower's call."""
    named = {**dict(zip(("hidden_states", "grid_thw"), args, strict=False)), **kwargs}
    return named.pop("hidden_states"), named.pop("grid_thw"), named
