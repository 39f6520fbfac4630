"""VisPruner: attended tokens, and others without their doubles."""

import torch

from tokenprune import VisualTokens
from tokenprune.policies import VisPruner

from .inputs import picks


def test_vispruner_removes_doubles_in_the_order_of_attention():
    """Token 5 is attended. The others are queued as 0, 2, 1, 3, 4, where 0 is compared with its double 2, 1 with 3.

    In raster order 0 would be compared with 1 and 3, and its double with the same.
    """
    noise = 0.01 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    features = torch.eye(4)[[0, 1, 0, 1, 2, 3]] + noise
    tokens = VisualTokens(features, encoder_attention=torch.tensor([5.0, 3, 4, 2, 1, 9]))
    for step in (2, 8):
        assert picks(VisPruner(important=0.25, step=step).select(tokens, 4)) == [2, 3, 4, 5]
    assert picks(VisPruner(important=1).select(tokens, 1)) == [5]
