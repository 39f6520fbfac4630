"""VisionZip: dominant and contextual tokens."""

import torch

from tokenprune import VisualTokens
from tokenprune.policies import VisionZip

from .inputs import directions, picks


def test_visionzip_by_hand():
    """Two dominant tokens; of the other four, 1 and 4 are targets; 2 joins 1, and 5 joins 4 by their keys."""
    features = torch.arange(12.0).view(6, 2)
    tokens = VisualTokens(
        features,
        encoder_attention=torch.tensor([9.0, 1, 2, 8, 3, 4]),
        encoder_keys=directions(0, 10, 20, 0, 80, 90),
    )
    kept = VisionZip(contextual=0.5).select(tokens, 4)
    assert picks(kept) == [0, 1, 3, 4]
    assert torch.equal(kept.features, torch.stack([features[i] for i in (0, 1, 3, 4)]) + torch.tensor(
        [[0.0, 0], [4, 5], [0, 0], [10, 11]]))  # fmt: skip
    assert VisionZip(contextual=0).select(tokens, 4).features is None


def test_visionzip_averages_what_joined():
    tokens = VisualTokens(
        torch.tensor([[1.0], [10], [20], [60]]),
        encoder_attention=torch.tensor([9.0, 0, 0, 0]),
        encoder_keys=directions(0, 45, 45, 45),
    )
    kept = VisionZip(contextual=0.5).select(tokens, 2)
    assert picks(kept) == [0, 1] and kept.features.tolist() == [[1.0], [10 + 40]]  # the mean of 20 and 60


def test_visionzip_merges_before_the_projector():
    project = torch.nn.Linear(3, 2)
    tokens = VisualTokens(
        torch.zeros(4, 2), encoder_features=torch.randn(4, 3), project=project,
        encoder_attention=torch.tensor([9.0, 0, 0, 0]), encoder_keys=directions(0, 45, 45, 45),
    )  # fmt: skip
    kept = VisionZip(contextual=0.5).select(tokens, 2)
    x = tokens.encoder_features
    torch.testing.assert_close(kept.features[1], project(x[1] + (x[2] + x[3]) / 2))
