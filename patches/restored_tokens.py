"""Patches that leave inside the vision encoder and come back, rebuilt from the change of their neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class RestoredTokens:
    """What is known of a batch of pictures when patches have left (IPCV, arXiv:2512.18747).

    Attributes:
        kept: (B, K) int64 ascending, tokens that stay, a CLS token included.
        gone: (B, R) int64 ascending, those that left.
        kept_states: (B, K, D), their hidden states when the others left.
        gone_states: (B, R, D).
        near: (B, R, T) int64, for each that left, indices in `kept` of the nearest ones.
        n_cls: 1 if token 0 is a CLS token, else 0.
    """

    kept: Tensor
    gone: Tensor
    kept_states: Tensor
    gone_states: Tensor
    near: Tensor
    n_cls: int

    @classmethod
    def of(cls, hidden: Tensor, kept: Tensor, neighbours: int, n_cls: int) -> RestoredTokens:
        """All but `kept`, (B, K), leave now.

        Args:
            hidden: (B, N, D) states of all.
            kept: (B, K) int64 ascending, the CLS token first if there is one.
            neighbours: how many of those that stay each of the others is rebuilt from, at most.
            n_cls: 1 if token 0 is a CLS token, else 0. It is no neighbour.
        """
        batch, n = hidden.shape[:2]
        stays = torch.zeros(batch, n, dtype=torch.uint8, device=hidden.device).scatter(1, kept, 1)
        gone = stays.argsort(dim=1, stable=True)[:, : n - kept.shape[1]]
        kept_states, gone_states = rows(hidden, kept), rows(hidden, gone)
        with torch.no_grad():
            wide = torch.promote_types(hidden.dtype, torch.float32)
            distance = torch.cdist(gone_states.to(wide), kept_states[:, n_cls:].to(wide))
            nearest = distance.topk(min(neighbours, distance.shape[2]), largest=False).indices
        return cls(kept, gone, kept_states, gone_states, nearest + n_cls, n_cls)

    def to(self, device: torch.device) -> RestoredTokens:
        """The same on another device: layers of an encoder may be on several."""
        if self.kept.device == device:
            return self
        return replace(
            self,
            kept=self.kept.to(device),
            gone=self.gone.to(device),
            kept_states=self.kept_states.to(device),
            gone_states=self.gone_states.to(device),
            near=self.near.to(device),
        )

    def take(self, values: Tensor) -> Tensor:
        """(B, K, D), rows of the kept ones, of (B, N, D)."""
        return rows(values, self.kept)

    def whole(self, states: Tensor) -> Tensor:
        """(B, N, D) of (B, K, D) states that the kept ones have now: the others are rebuilt."""
        return self._joined(states, self.gone_states + self._mean_of_near(states - self.kept_states))

    def filled(self, values: Tensor) -> Tensor:
        """(B, N', C) of (B, K', C) values of the kept ones without the CLS token: others get the mean of their nearest.

        What is not of so many tokens is returned as it is.
        """
        if values.shape[1] != self.kept.shape[1] - self.n_cls:
            return values
        padded = torch.cat([values.new_zeros(len(values), self.n_cls, values.shape[2]), values], 1)
        return self._joined(padded, self._mean_of_near(padded))[:, self.n_cls :]

    def zeros_beside(self, states: Tensor) -> Tensor:
        """(B, N, D) of (B, K, D) states of the kept ones, with zeros for the others."""
        return self._joined(states, torch.zeros_like(self.gone_states, dtype=states.dtype))

    def _mean_of_near(self, values: Tensor) -> Tensor:
        total = rows(values, self.near[..., 0])
        for i in range(1, self.near.shape[2]):
            total = total + rows(values, self.near[..., i])
        return total / self.near.shape[2]

    def _joined(self, kept: Tensor, gone: Tensor) -> Tensor:
        whole = kept.new_zeros(len(kept), kept.shape[1] + gone.shape[1], kept.shape[2])
        for index, values in ((self.kept, kept), (self.gone, gone)):
            whole = whole.scatter(1, index[..., None].expand_as(values), values)
        return whole


def mask_of(mask: Tensor, kept: Tensor) -> Tensor:
    """An attention mask, (B, N) or (B, 1, N or 1, N), as it is for some tokens alone, (B, K)."""
    if mask.ndim == 2:
        return mask.gather(1, kept)
    mask = mask.gather(3, kept[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1))
    if mask.shape[2] == 1:
        return mask
    return mask.gather(2, kept[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))


def rows(values: Tensor, index: Tensor) -> Tensor:
    """(B, K, D) of (B, N, D), by (B, K) int64 indices."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
