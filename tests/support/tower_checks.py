"""Checks that hold for every stage that lets tokens leave before the vision tower or inside it."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenprune import pruning

from ..oracles import generate


def flops_of(run):
    """FLOPs of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def check_keeping_all(model, batch, policy):
    """With all tokens the model is the stock one to the bit, as it is again after pruning; with a third it is not."""
    before = generate(model, batch.inputs, 3)
    with pruning(model, policy, 1.0):
        assert torch.equal(generate(model, batch.inputs, 3).logits, before.logits)
    with pruning(model, policy, 0.3):
        assert not torch.equal(generate(model, batch.inputs, 3).logits, before.logits)
    assert torch.equal(generate(model, batch.inputs, 3).logits, before.logits)


def check_pictures_alone(model, batch):
    """In a Qwen-like tower, a picture among others has the features that it has alone."""
    grids, pixels = batch.inputs["image_grid_thw"], batch.inputs["pixel_values"]
    together = model.model.get_image_features(pixels, grids).pooler_output
    for i, alone in enumerate(pixels.split(grids.prod(1).tolist())):
        found = model.model.get_image_features(alone, grids[i : i + 1]).pooler_output[0]
        torch.testing.assert_close(found, together[i], rtol=0, atol=1e-9)
