"""The optimizer of the embedded models' training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .muon import BatchedMuon


class Optimizer:
    """Muon for hidden matrices and AdamW for the rest, with a warm-up and a linear decay.

    Args:
        named: parameters by name.
        steps: of the stage.
        pace: factor of the learning rates.
        batched: orthogonalize matrices of one shape together, in float32 (`muon.py`).
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]], steps: int, pace: float = 1.0, batched: bool = False):
        named = [(name, p) for name, p in named if p.requires_grad]
        special = ("embed", "lm_head", "position", "patch.", "places.", "picture.")
        matrices = [p for n, p in named if p.ndim == 2 and not any(s in n for s in special)]
        chosen = {id(p) for p in matrices}
        self.rest = [p for _, p in named if id(p) not in chosen]
        muon = BatchedMuon if batched else torch.optim.Muon
        self.optimizers = [
            muon(matrices, lr=0.02 * pace, weight_decay=0.02),
            torch.optim.AdamW(self.rest, lr=3e-3 * pace, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        schedule = lambda i: min(1, (i + 1) / (0.03 * steps)) * min(1, max(0.02, (1 - i / steps) / 0.55))
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, schedule) for o in self.optimizers]

    def step(self, loss: Tensor) -> None:
        """Backward pass, gradient clipping and update."""
        for o in self.optimizers:
            o.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.rest, 1.0)
        for o, s in zip(self.optimizers, self.schedules, strict=True):
            o.step()
            s.step()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` of another one for the same parameters goes on from."""
        return {"optimizers": [o.state_dict() for o in self.optimizers], "done": self.schedules[0].last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the state of another one."""
        for o, saved in zip(self.optimizers, state["optimizers"], strict=True):
            o.load_state_dict(saved)
        for s in self.schedules:
            s.last_epoch = state["done"]
