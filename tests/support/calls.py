"""Calls that end early, and policies that do something else meanwhile."""

from dataclasses import dataclass, field

import pytest
import torch

from tokenprune import Policy, Selection

from ..families import text_of

ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError)


@dataclass
class Calls(Policy):
    """Keeps the first tokens, and does something else meanwhile."""

    action: object = field(default=lambda: None)

    def select(self, tokens, n_keep):
        self.action()
        return Selection(torch.arange(n_keep))


@torch.no_grad()
def loop(model, ids, steps=5):
    """Greedy decoding by hand, without a mask: logits of every step."""
    out = model(input_ids=ids, use_cache=True)
    logits = [out.logits[:, -1]]
    for _ in range(steps):
        out = model(input_ids=logits[-1].argmax(-1)[:, None], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[:, -1])
    return torch.stack(logits)


def places(model):
    """Modules at which a call may end early, from the outside in."""
    base = model.model
    tower = base.visual if hasattr(base, "visual") else base.vision_tower
    return {"tower": tower, "text": text_of(model), "layer": text_of(model).layers[1], "norm": text_of(model).norm}


def interrupt(model, module, end, call):
    """Run a call in which `end` is raised before the forward of a module."""

    def stop(*args):
        raise end("on purpose")

    handle = module.register_forward_pre_hook(stop)
    try:
        with pytest.raises(end):
            call()
    finally:
        handle.remove()
