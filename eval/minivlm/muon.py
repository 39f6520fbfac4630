"""Muon in float32, for matrices of one shape together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315  # coefficients of the Newton-Schulz iteration
_ITERATIONS = 5


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices (n, a, b) with all singular values near 1, by Newton-Schulz iterations.

    The iteration is that of Jordan et al., *Muon: An optimizer for hidden layers in neural networks* (2024).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.transpose(1, 2) if tall else x


class BatchedMuon(torch.optim.Optimizer):
    """`torch.optim.Muon`, but in float32, and with one iteration for all matrices of a shape.

    torch's multiplies in bfloat16, matrix by matrix, which takes most of a step on a processor without bfloat16.

    Args:
        matrices: the parameters, each with two dimensions.
        lr: learning rate.
        weight_decay: decoupled weight decay.
        momentum: of Nesterov's method.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients.

        Args:
            closure: not supported; None.
        """
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, same in shapes.items():
                updates = []
                for p in same:
                    assert p.grad is not None
                    buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]))
                rate = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                for p, update in zip(same, orthogonalized(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)
