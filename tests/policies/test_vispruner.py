"""VisPruner: attended tokens, and others without their doubles."""

import torch

from tokenprune import VisualTokens
from tokenprune.policies import VisPruner

from .inputs import picks


def test_vispruner_removes_doubles():
    """Token 5 is attended; of the others 0 doubles 1, 2 doubles 3 and 4 is alone: 0 and 2 leave."""
    features = torch.eye(4)[[0, 0, 1, 1, 2, 3]] + 0.01 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    tokens = VisualTokens(features, encoder_attention=torch.tensor([0, 0, 0, 0, 0, 1.0]))
    for step in (1, 2, 8):
        assert picks(VisPruner(important=0.25, step=step).select(tokens, 4)) == [1, 3, 4, 5]
    assert picks(VisPruner(important=1).select(tokens, 1)) == [5]
