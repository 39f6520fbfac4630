"""Vision towers that take the patches of all inputs as one sequence: what they need to know of it, if some are missing.

From transformers 5.9 on these towers take what they derive from the inputs' sizes as keyword arguments too: position
ids, borders of attention, the order of windows, and where a table of learned positions is read.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import to_device

_FUNCTIONS = ("get_vision_cu_seqlens", "get_vision_position_ids", "get_vision_window_index")
#: Arguments of a tower that depend on which patches it gets.
_GEOMETRY = (
    "position_ids",
    "cu_seqlens",
    "max_seqlen",
    "window_index",
    "cu_window_seqlens",
    "max_window_seqlen",
    "interp_indices",
    "interp_weights",
    "bilinear_indices",
    "bilinear_weights",
)


def full_attention(tower: Any, n_layers: int) -> list[bool]:
    """By layer, whether it attends to whole pictures and frames, and not to windows."""
    full = getattr(tower, "fullatt_block_indexes", None)
    return [full is None or i in full for i in range(n_layers)]


def no_packed_geometry() -> str | None:
    """Why towers take no geometry from outside in this version of transformers; None: they do."""
    try:
        utils = importlib.import_module("transformers.vision_utils")
    except ModuleNotFoundError:
        utils = None
    if utils is not None and all(hasattr(utils, name) for name in _FUNCTIONS):
        return None
    return f"in transformers {version('transformers')} its tower takes whole pictures only; install 5.9 or later"


@dataclass(frozen=True)
class KeptTokens:
    """Which tokens of a tower's sequence are left. A token is `merge ** 2` patches that follow each other.

    Attributes:
        tower: of the model.
        grids: (inputs, 3) int64 on the host, frames, rows and columns of patches of each input.
        keep: (N,) bool on the host, by token, frame by frame and row by row.
    """

    tower: Any
    grids: Tensor
    keep: Tensor

    @property
    def tokens(self) -> Tensor:
        """(K,) indices of the tokens that are left, ascending, on the host."""
        tokens: Tensor = self.keep.nonzero()[:, 0]
        return tokens

    @property
    def patches(self) -> Tensor:
        """(K * merge ** 2,) indices of their patches."""
        unit: int = self.tower.spatial_merge_size**2
        return (self.tokens[:, None] * unit + torch.arange(unit)).flatten()

    def arguments(self, given: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """Keyword arguments of the tower for the patches that are left.

        Args:
            given: those for all patches. Position ids and the like that a caller has computed are used.
            device: of the patches.
        """
        from transformers import vision_utils

        tower, merge, grids, patches = self.tower, self.tower.spatial_merge_size, self.grids, self.patches
        known = dict(given)
        position_ids = vision_utils.get_vision_position_ids(grids, merge, kwargs=known)
        found = {"position_ids": _rows(position_ids, patches), "cu_seqlens": self.borders_of_frames()}
        if hasattr(tower, "pos_embed"):
            found |= self._learned_positions(patches, known)
        if hasattr(tower, "window_size"):
            found |= self._windows()
        others = {name: value for name, value in given.items() if name not in _GEOMETRY}
        return others | {name: to_device(value, device) for name, value in found.items()}

    def _learned_positions(self, patches: Tensor, known: dict[str, Any]) -> dict[str, Tensor]:
        """Where in the table of learned positions each patch reads, and with which weights."""
        from transformers import vision_utils

        tower, given = self.tower, {"spatial_merge_size": self.tower.spatial_merge_size, "kwargs": known}
        side = tower.num_grid_per_side
        if hasattr(tower, "interpolation_mode"):
            indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
                self.grids,
                num_grid_per_side=side,
                mode=tower.interpolation_mode,
                align_corners=tower.interpolation_align_corners,
                **given,
            )
            return {"interp_indices": _rows(indices, patches), "interp_weights": _rows(weights, patches)}
        # Until some transformers 5.x they are (4, patches).
        indices, weights = vision_utils.get_vision_bilinear_indices_and_weights(
            self.grids, num_grid_per_side=side, **given
        )
        return {"bilinear_indices": _rows(indices.T, patches).T, "bilinear_weights": _rows(weights.T, patches).T}

    def of_all(self, values: Tensor) -> Tensor:
        """(1, M, C) values of the patches that are left, as the tower has them, among all, with zeros elsewhere."""
        unit = values.shape[1] // int(self.keep.sum())
        by_token = values[0].unflatten(0, (-1, unit))
        return whole_raster(by_token, self.in_order_of_tower(), len(self.keep)).flatten(0, 1)[None]

    def in_order_of_tower(self) -> Tensor:
        """(K,) for each token that is left, as the tower has them, its place among all, as the tower would have them.

        A tower with windows has the tokens window by window.
        """
        if not hasattr(self.tower, "window_size"):
            return self.tokens
        in_windows = self.keep[self._window_order()[0]]
        return in_windows.nonzero()[:, 0]

    def ids_in_order_of_tower(self) -> Tensor:
        """(K,) the tokens that are left, as indices of `keep`, in the order in which the tower has them."""
        if not hasattr(self.tower, "window_size"):
            return self.tokens
        order = self._window_order()[0]
        return order[self.keep[order]]

    def _window_order(self) -> tuple[Tensor, Tensor]:
        from transformers import vision_utils

        order: tuple[Tensor, Tensor] = vision_utils.get_vision_window_index(
            self.grids,
            spatial_merge_size=self.tower.spatial_merge_size,
            window_size=self.tower.window_size,
            patch_size=self.tower.patch_size,
        )
        return order

    def borders_of_frames(self) -> Tensor:
        """(frames + 1,) int32, in patches. Frames attend to themselves; those of which nothing is left are none."""
        return self._borders(self.keep, self._frame_sizes())

    def borders_of_windows(self) -> Tensor:
        """(windows + 1,) int32, in patches, of a tower with windows; those of which nothing is left are none."""
        order, borders = self._window_order()
        return self._borders(self.keep[order], borders.diff().long() // self.tower.spatial_merge_size**2)

    def frame_counts(self) -> Tensor:
        """(frames,) how many tokens are left of each frame, of all inputs."""
        sizes = self._frame_sizes()
        frame = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        return torch.bincount(frame[self.keep], minlength=len(sizes))

    def _frame_sizes(self) -> Tensor:
        unit = self.tower.spatial_merge_size**2
        return torch.repeat_interleave(self.grids[:, 1] * self.grids[:, 2] // unit, self.grids[:, 0])

    def _windows(self) -> dict[str, Tensor]:
        order = self._window_order()[0]
        new_index = self.keep.cumsum(0) - 1
        return {"window_index": new_index[order[self.keep[order]]], "cu_window_seqlens": self.borders_of_windows()}

    def _borders(self, kept: Tensor, sizes: Tensor) -> Tensor:
        """Borders, in patches, of pieces of the sequence of these sizes in tokens, after some have left."""
        piece = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        counts = torch.bincount(piece[kept], minlength=len(sizes))
        lengths = counts[counts > 0] * self.tower.spatial_merge_size**2
        return F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def _rows(values: Any, index: Tensor) -> Any:
    return values.index_select(0, to_device(index, values.device))


def whole_raster(values: Tensor, places: Tensor, n: int) -> Tensor:
    """(n, ...) with rows of `values`, (K, ...), at `places`, (K,), and zeros elsewhere."""
    return values.new_zeros(n, *values.shape[1:]).index_copy(0, to_device(places, values.device), values)


def patch_embeddings(tower: Any, pixels: Tensor) -> Tensor:
    """(N, D), for each token the mean of the tower's embeddings of its patches, of pixels (N * merge ** 2, C)."""
    embedded: Tensor = tower.patch_embed(pixels).reshape(len(pixels), -1)
    by_token: Tensor = embedded.unflatten(0, (-1, tower.spatial_merge_size**2))
    return by_token.mean(1)
