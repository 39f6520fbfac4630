"""The same computation for several inputs, with few launches on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def stacked(run: Callable[..., Tensor], *arguments: Sequence[Tensor]) -> list[Tensor]:
    """The results of `run` for each input.

    On a GPU, inputs whose arguments have the same shapes are stacked and computed together. On the CPU, where nothing
    is gained by that, each is computed alone, so that its rounding does not depend on the others.

    Args:
        run: of one tensor of each of `arguments`, or of a stack of them, along new first dimensions.
        *arguments: sequences with a tensor for each input.
    """
    inputs = list(zip(*arguments, strict=True))
    if not inputs or inputs[0][0].device.type == "cpu":
        return [run(*each) for each in inputs]
    alike: dict[tuple[torch.Size, ...], list[int]] = {}
    for i, each in enumerate(inputs):
        alike.setdefault(tuple(x.shape for x in each), []).append(i)
    found: dict[int, Tensor] = {}
    for some in alike.values():
        results = run(*(torch.stack([inputs[i][j] for i in some]) for j in range(len(arguments))))
        found |= dict(zip(some, results.unbind(), strict=True))
    return [found[i] for i in range(len(inputs))]
