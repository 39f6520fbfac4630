"""Encoder-stage pruning in Pixtral towers, which take the patches of all pictures as one sequence, row by row.

Patches leave between layers, all of a token together. Before the module behind the tower the raster is whole again,
with zeros where patches have left.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import TokenBudget
from ..device import to_device
from ..policies.base import Policy
from ..policies.stages import Stage
from ..stopwatch import Stopwatch
from .attention_tap import AttentionTap
from .encoder_activations import EncoderActivations
from .encoder_capture import patches_left
from .families.base import Family, Kind
from .families.tower_layers import layers_below_feature
from .modules import arguments_by_name
from .packed_call import Frame, FramesCall
from .packed_stage import PackedStage
from .packed_tower import whole_raster
from .pixel_stage import PixelStage
from .pixtral_stage import KeptPatches, PixtralCall, borders_of, patch_sizes
from .tower_hooks import InsideTower, not_inside, with_number

logger = logging.getLogger(__name__)


@dataclass
class PixtralLayersCall(FramesCall):
    """One call of a Pixtral tower, as it stands at the layer that is running.

    Attributes:
        sizes: rows and columns of patches of each picture.
        totals: tokens of each.
        keep: (N,) bool on the host, by token of all pictures, which are left.
        entered: which of them entered the tower.
        patches: (T, group) for each token that entered, its patches among those that entered, token by token.
        others: patches that belong to no token, and stay.
        rows: (K,) ascending, which of the patches that entered are left.
        n_entered: how many patches did.
        counts: patches that are left of each picture.
        has_lost: whether some have left inside the tower.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    totals: list[int] = field(default_factory=list)
    keep: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    entered: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    patches: Tensor = field(default_factory=lambda: torch.empty(0, 1, dtype=torch.int64))
    others: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    n_entered: int = 0
    counts: list[int] = field(default_factory=list)
    has_lost: bool = False

    def begin(self, kept: KeptPatches | None, merge: int, budget: TokenBudget) -> None:
        """The layers are entered with these patches; None: all."""
        tokens, others, start = [], [], 0
        for height, width in self.sizes:
            raster = start + torch.arange(height * width).view(height, width)
            tiles = raster[: height // merge * merge, : width // merge * merge]
            by_token = tiles.unflatten(1, (-1, merge)).unflatten(0, (-1, merge)).transpose(1, 2)
            tokens.append(by_token.flatten(2).flatten(0, 1))
            is_other = torch.ones(height, width, dtype=torch.bool)
            is_other[: tiles.shape[0], : tiles.shape[1]] = False
            others.append(raster[is_other])
            start += height * width
        keep_patches = torch.ones(start, dtype=torch.bool) if kept is None else kept.keep_patches
        place = keep_patches.cumsum(0) - 1
        self.totals = [len(each) for each in tokens]
        self.entered = torch.ones(sum(self.totals), dtype=torch.bool) if kept is None else kept.keep
        self.keep, self.has_lost = self.entered.clone(), False
        self.patches, self.others = place[torch.cat(tokens)[self.entered]], place[torch.cat(others)]
        self.n_entered = int(keep_patches.sum())
        self.rows = torch.arange(self.n_entered)
        counts = [int(each.sum()) for each in self.entered.split(self.totals)]
        self.frames = [
            Frame(i, count, min(count, budget.count(n) or 0), count)
            for i, (n, count) in enumerate(zip(self.totals, counts, strict=True))
            if count
        ]
        self.heads.clear()

    @property
    def by_token(self) -> Tensor:
        """(K,) indices, among the patches as the tower has them, of those of the tokens that are left."""
        now = self.patches[self.keep[self.entered]].flatten()
        return torch.searchsorted(self.rows, now)

    def leave(self, left: Tensor) -> Tensor:
        """All but `left`, (K,) indices among the tokens that are left, leave.

        Returns:
            indices, among the patches as the tower has them, of those that stay.
        """
        ids = self.keep.nonzero()[:, 0][left]
        self.keep = torch.zeros_like(self.keep).index_fill_(0, ids, True)
        rows = torch.cat([self.patches[self.keep[self.entered]].flatten(), self.others]).sort().values
        stay, self.rows, self.has_lost = torch.searchsorted(self.rows, rows), rows, True
        group, counts = self.patches.shape[1], [int(each.sum()) for each in self.keep.split(self.totals)]
        for frame in self.frames:
            frame.count = counts[frame.index]
        self.frames = [frame for frame in self.frames if frame.count]
        others = [height * width - n * group for (height, width), n in zip(self.sizes, self.totals, strict=True)]
        self.counts = [count * group + n for count, n in zip(counts, others, strict=True)]
        return stay

    def whole_tower(self, values: Tensor) -> Tensor:
        """(..., K, C) values of the patches that are left among those that entered, with zeros elsewhere."""
        if not self.has_lost or values.shape[-2] != len(self.rows):
            return values
        return whole_raster(values.movedim(-2, 0), self.rows, self.n_entered).movedim(0, -2)

    def whole_raster(self, values: Tensor) -> Tensor:
        """The same, of values that were read of the patches that are left in the end."""
        return self.whole_tower(values)


class PixtralEncoderStage(PackedStage):
    """Hooks on a Pixtral tower, on its layers, and on the module that gets its output.

    Args:
        base: the base model.
        family: its facts; they name the tower.
        policy: acts at the encoder stage.
        budget: of it. It counts tokens of the language model.

    Raises:
        ValueError: where the policy, the tower or the budget does not allow it.
    """

    def __init__(self, base: nn.Module, family: Family, policy: Policy, budget: TokenBudget):
        self.policy = policy
        config: Any = base.config
        assert family.encoder is not None and family.encoder.pixtral is not None
        tower, self.reader, self.merge = family.encoder.pixtral(base)
        self.tower: Any = tower
        self.group = self.merge**2
        if not policy.chooses_groups:
            reason = (
                "its Pixtral tower takes all pictures as one sequence, whose patches can leave together, and the "
                "policy merges or resizes patches one by one"
            )
            raise not_inside(policy, base, reason)
        self.budget = with_number(policy, budget)
        self.blocks = list(self.tower.get_submodule("transformer.layers").children())
        read = layers_below_feature(self.blocks, getattr(config, "vision_feature_layer", -1))
        self.borders = list(range(1, len(read)))
        if not self.borders:
            raise ValueError(f"policy {policy!r} needs a vision tower of two layers or more below one output")
        self._taps = [AttentionTap(self.blocks[i - 1].attention, self._read) for i in self.borders]
        self._handles: list[Any] = []

    def attach(self) -> None:
        for tap in self._taps:
            tap.attach()
        self._handles += [
            self.tower.register_forward_pre_hook(self._note_sizes, with_kwargs=True),
            self.tower.transformer.register_forward_pre_hook(self._enter_layers),
            # before that of the pixels stage, which puts back what has left before the tower
            self.reader.register_forward_pre_hook(self._enter_reader, prepend=True),
        ]
        for i, block in enumerate(self.blocks[1:], 1):
            enter = functools.partial(self._enter_block, i)
            self._handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))

    def cutting(self) -> AbstractContextManager[Any]:
        """Let tokens leave in the encoder's calls of a block, in this thread alone."""
        return self._during(PixtralLayersCall(self))  # type: ignore[arg-type]

    @staticmethod
    def mark_kept(
        call: Any, activations: EncoderActivations, kind: Kind, lengths: list[int], arguments: Mapping[str, Any]
    ) -> EncoderActivations:
        """Note by visual input, of these numbers of tokens, which are left after a call of the feature function."""
        if call.select_ms:
            activations.select_ms[str(Stage.ENCODER)] = [call.select_ms * n / sum(lengths) for n in lengths]
        if call.has_lost:
            activations.kept[str(Stage.ENCODER)] = list(call.keep.split(lengths))
        return activations

    def _read(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> None:
        InsideTower._read(self, module, query, key, value, kwargs)

    def _note_sizes(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call: Any = self._call()
        if call is not None:
            call.sizes = patch_sizes(self.tower.patch_size, args, kwargs)[1]

    def _enter_layers(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the layers, with the patches that the pixels stage has left."""
        call: Any = self._call()
        if call is None:
            return
        before = PixelStage.running.get()
        is_same = isinstance(before, PixtralCall) and before.stage.tower is self.tower
        kept = before.kept if is_same else None
        call.begin(kept if isinstance(kept, KeptPatches) else None, self.merge, self.budget)

    def _enter_block(
        self, i: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before layer `i`: let tokens leave, and give it positions, masks and borders of those that are left."""
        call: Any = self._call()
        if call is None:
            return None
        args, arguments = arguments_by_name(module, args, kwargs)
        if i in self.borders:
            arguments = {**arguments, "hidden_states": self._cut_rows(call, self.borders.index(i), arguments)}
        if not call.has_lost:
            return None
        rows = to_device(call.rows, arguments["hidden_states"].device)
        positions = tuple(each.index_select(-2, rows) for each in arguments["position_embeddings"])
        changed: dict[str, Any] = {"position_embeddings": positions, **borders_of(arguments, call.counts)}
        mask = arguments.get("attention_mask")
        if isinstance(mask, Tensor):
            changed["attention_mask"] = mask.index_select(-1, rows).index_select(-2, rows)
        return args, {**arguments, **changed}

    def _cut_rows(self, call: Any, cut: int, arguments: Mapping[str, Any]) -> Tensor:
        """(1, K, D), hidden states of the patches that are left."""
        hidden: Tensor = arguments["hidden_states"]
        watch = Stopwatch(hidden.device)
        query, key, value, call.scaling = call.heads
        order = to_device(call.by_token, hidden.device)
        sizes = [frame.count * self.group for frame in call.frames]
        by_frame = (each.index_select(2, order).split(sizes, 2) for each in (query, key, value))
        call.heads = list(zip(*by_frame, strict=True))
        kept = self._choose(call, cut, hidden[0].index_select(0, order))
        call.select_ms += watch.ms()
        if len(kept) == call.now_count:
            return hidden
        logger.debug("encoder cut %d: %d of %d tokens are left", cut, len(kept), call.now_count)
        stay = call.leave(kept)
        patches_left(call.counts)
        return hidden.index_select(1, to_device(stay, hidden.device))

    def _enter_reader(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before the module behind the tower: all patches that entered it, with zeros where some have left."""
        call: Any = self._call()
        return None if call is None or not call.has_lost else (call.whole_tower(args[0]), *args[1:])
