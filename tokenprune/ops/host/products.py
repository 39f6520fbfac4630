"""Products of unit vectors for the host implementation: the whole matrix, or a part of it at a time."""

from __future__ import annotations

import torch
from torch import Tensor

GRAM_LIMIT = 4096  # tokens; above, N x N float32 would take more than 64 MB
GRAM_GAIN = 12  # a matrix product is this many times as fast per operation as matrix times vector
TILE = 1 << 22  # elements of a tile of scores: 16 MB in float32, whatever N is
_GRAM_BLOCKS = 6  # blocks along a side of the matrix of similarities
_LEAST_SIDE = 32  # rows and columns of a product, at least; BLAS adds up in another order in thin ones


def unit_vectors(features: Tensor) -> Tensor:
    """(N, D) float32 unit vectors; zero vectors stay zero."""
    unit = features.float()
    length = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_(min=1e-12)
    return unit / length if unit is features else unit.div_(length)


def mean_lengths(features: Tensor) -> Tensor:
    """(N,) float32 lengths of (N, D) vectors, in units of their mean."""
    norms = torch.linalg.vector_norm(features.float(), dim=-1)
    in_means: Tensor = norms / norms.mean().clamp(min=1e-12)
    return in_means


def gram(unit: Tensor, out: Tensor | None = None) -> Tensor:
    """(N, N) products of (N, D) vectors, in `out` if given: blocks on and below the diagonal, the others mirrored.

    Small matrices are a single block. Blocks begin where the tiles of the BLAS product do, so that equal tokens get
    equal sums.
    """
    n = len(unit)
    matrix = unit.new_empty(n, n) if out is None else out
    for start in range(0, n, step := max(96, -(-n // (32 * _GRAM_BLOCKS)) * 32)):
        stop = start + step
        torch.mm(unit[start:], unit[start:stop].T, out=matrix[start:, start:stop])
        block = matrix[start:stop, start:stop]  # symmetric but for rounding; each other's nearest must tie
        block.copy_(torch.maximum(block, block.T))
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T
    return matrix


def product(rows: Tensor, columns: Tensor) -> Tensor:
    """(M, K) products of (M, D) and (K, D) vectors. A product has the same bits whatever else is computed with it.

    BLAS adds up in another order where a side is thin, so thin sides are filled up with copies of their last vector.
    """
    m, k = len(rows), len(columns)
    return (_filled(rows) @ _filled(columns).T)[:m, :k]


def _filled(x: Tensor) -> Tensor:
    missing = _LEAST_SIDE - len(x)
    return x if missing <= 0 else torch.cat([x, x[-1:].expand(missing, -1)])


def with_lengths(cosine: Tensor, rows: Tensor, columns: Tensor, length: float) -> Tensor:
    """Similarities with lengths, computed in place.

    Args:
        cosine: (..., N) cosine similarities.
        rows: (..., 1) or a scalar, lengths of the tokens of its rows, in units of the mean.
        columns: (N,), those of the tokens of its columns.
        length: weight of lengths; similarity is minus the distance of `max_min_select`, up to a constant.
    """
    cosine *= (1 - length) + length * (rows * columns)
    cosine -= length / 2 * (rows**2 + columns**2)
    return cosine
