"""How well tokens cover tokens and other targets: the whole matrix of it, or parts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .products import TILE, gram, product

SIDE = 512  # tokens along a side of a block of similarities
_ROUNDING = 1e-5  # of a sum whose terms cancel: with it, the sum is an upper bound


class TokenTargets:
    """How well tokens cover all tokens, and other targets, as `token_coverage_select` defines it.

    Args:
        unit: (N, D) float32 unit vectors.
        weight: (N,) float32 weights of the tokens as targets; None: ones.
        shift: of the cosine similarities.
        temperature: of a softmax over tokens; None: no softmax.
        others: (W, N) float32, how well tokens cover other targets.
    """

    def __init__(
        self, unit: Tensor, weight: Tensor | None, shift: float, temperature: float | None, others: Tensor | None
    ):
        self.unit, self.shift, self.temperature, self.others = unit, shift, temperature, others
        self.weight = unit.new_ones(len(unit)) if weight is None else weight
        self.weighted = weight is not None
        # A zero vector is as similar to all tokens. All other vectors are most similar to themselves.
        self.is_zero = (unit == 0).all(1)

    def matrix(self) -> Tensor:
        """(N, N + W): how well each token covers each target."""
        n = len(self.unit)
        matrix = self.unit.new_empty(n, self.count)
        cover = gram(self.unit, out=matrix[:, :n])
        if self.shift:
            cover.add_(self.shift / (1 - self.shift)).mul_(1 - self.shift)
        if self.temperature is not None:
            cover.div_(self.temperature)
            for part in cover.split(SIDE):
                part.copy_(part.softmax(-1))
            _transpose(cover)  # symmetric until the softmax; rows are candidates from here on
        if self.weighted:
            cover *= self.weight
        if self.others is not None:
            matrix[:, n:] = self.others.T
        return matrix

    def prepare(self) -> Tensor:
        """(N,) gains of all tokens before the first pick. With a softmax, its denominators are computed first.

        They are summed in another order than later gains. Where no token covers a target by less than 0 they follow
        from the sum of all vectors, without the products of all pairs.
        """
        if self.temperature is not None:
            total = self.unit.new_zeros(len(self.unit))
            for rows, columns, block in self._blocks():
                total[rows] += block.sum(1)
                if rows.start != columns.start:
                    total[columns] += block.sum(0)
            # A zero vector's softmax is even.
            self.even = self.weight / len(self.unit)
            self.weight = torch.where(self.is_zero, 0, self.weight / total)
        if self.temperature is None and self.shift >= 0.5:
            together = (1 - self.shift) * (self.weight @ self.unit)
            gains = torch.mv(self.unit, together) + (1 + _ROUNDING) * self.shift * self.weight.sum()
        else:
            gains = self.unit.new_zeros(len(self.unit))
            for rows, columns, block in self._blocks():
                block.clamp_(min=0)
                gains[rows] += block @ self.weight[columns]
                if rows.start != columns.start:
                    gains[columns] += self.weight[rows] @ block
        if self.temperature is not None:
            gains += torch.where(self.is_zero, self.even, 0).sum()
        return gains if self.others is None else gains + self.others.clamp(min=0).sum(0)

    def _blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Blocks on and above the diagonal of the symmetric matrix of similarities, without weights."""
        n = len(self.unit)
        for i in range(0, n, SIDE):
            for j in range(i, n, SIDE):
                rows, columns = slice(i, min(n, i + SIDE)), slice(j, min(n, j + SIDE))
                yield rows, columns, self._changed(product(self.unit[rows], self.unit[columns]))

    def _changed(self, cosine: Tensor) -> Tensor:
        if self.shift:
            cosine = cosine.add_(self.shift / (1 - self.shift)).mul_(1 - self.shift)
        if self.temperature is not None:
            cosine = cosine.sub_(1).div_(self.temperature).exp_()
        return cosine

    def blocks_of(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, Tensor]]:
        """For (R,) distinct tokens as targets: how well all tokens cover them, after `prepare`.

        Yields:
            some of the targets, some tokens, and (M, K) how well these tokens cover these targets. Each product of two
            targets is computed once, for both directions.
        """
        rest = np.setdiff1d(np.arange(len(self.unit)), rows, assume_unique=True)
        sides = [order[i : i + SIDE] for order in (rows, rest) for i in range(0, len(order), SIDE)]
        n_sides = -(-len(rows) // SIDE)  # of targets
        for i in range(n_sides):
            for j in range(i, len(sides)):
                block = self._changed(product(self._unit(sides[i]), self._unit(sides[j])))
                yield sides[i], sides[j], self._weighed(block, sides[i])
                if i < j < n_sides:
                    yield sides[j], sides[i], self._weighed(block.T.contiguous(), sides[j])

    def _unit(self, tokens: np.ndarray) -> Tensor:
        if tokens[-1] - tokens[0] == len(tokens) - 1:  # ascending, so nothing is left out
            return self.unit[tokens[0] : tokens[-1] + 1]
        return self.unit[torch.from_numpy(tokens).to(self.unit.device)]

    def _weighed(self, block: Tensor, targets: np.ndarray) -> Tensor:
        """(M, K) of the targets at (M,) indices, with their weights."""
        if not self.weighted and self.temperature is None:
            return block
        index = torch.from_numpy(targets).to(block.device)
        block = block * self.weight[index, None]
        if self.temperature is not None:
            block = torch.where(self.is_zero[index, None], self.even[index, None], block)
        return block

    def rows(self, tokens: np.ndarray, out: Tensor) -> None:
        """Write (M, N + W), how well the tokens at (M,) indices cover all targets; after `prepare`."""
        n = len(self.unit)
        index = torch.from_numpy(tokens).to(self.unit.device)
        for start in range(0, n, step := max(SIDE, TILE // len(tokens))):
            part = slice(start, min(n, start + step))
            block = self._changed(product(self.unit[index], self.unit[part])).mul_(self.weight[part])
            if self.temperature is not None:
                block = torch.where(self.is_zero[part], self.even[part], block)
            out[:, part] = block
        if self.others is not None:
            out[:, n:] = self.others[:, index].T

    @property
    def count(self) -> int:
        """Number of targets."""
        return len(self.unit) + (0 if self.others is None else len(self.others))


def _transpose(matrix: Tensor) -> None:
    """Transpose (N, N) in place."""
    n = len(matrix)
    for i in range(0, n, SIDE):
        for j in range(i, n, SIDE):
            rows, columns = slice(i, i + SIDE), slice(j, j + SIDE)
            upper = matrix[rows, columns].clone()
            matrix[rows, columns] = matrix[columns, rows].T.clone()
            matrix[columns, rows] = upper.T
