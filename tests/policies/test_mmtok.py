"""MMTok: coverage of the question and of the picture."""

import torch
import torch.nn.functional as F

from tokenprune import VisualTokens
from tokenprune.policies import MMTok

from .inputs import picks


def test_mmtok_is_its_definition():
    generator = torch.Generator().manual_seed(4)
    features, words = torch.randn(12, 6, generator=generator), torch.randn(3, 6, generator=generator)
    unit, word = F.normalize(features, dim=-1), F.normalize(words, dim=-1)
    seen, meant = (unit @ unit.T / 0.3).softmax(-1), (word @ unit.T / 0.1).softmax(-1)

    def covered(some):
        return float(meant[:, some].amax(1).mean() + 0.7 * seen[:, some].amax(1).mean())

    kept: list[int] = []
    for _ in range(5):
        kept.append(max((j for j in range(12) if j not in kept), key=lambda j: covered([*kept, j])))
    policy = MMTok(text_temperature=0.1, vision_temperature=0.3, alpha=0.7)
    assert picks(policy.select(VisualTokens(features, question=words), 5)) == sorted(kept)


def test_mmtok_hears_the_question():
    features = torch.eye(5)
    for i in range(5):
        assert picks(MMTok().select(VisualTokens(features, question=features[i : i + 1]), 1)) == [i]
    assert picks(MMTok().select(VisualTokens(features), 1)) == [0]


def test_mmtok_compares_patches_where_there_are_means_of_them():
    """The tokens are all alike; before the merger they are two and one."""
    patches = torch.eye(2)[[0, 0, 1]]
    tokens = VisualTokens(torch.ones(3, 4), encoder_patches=patches)
    assert picks(MMTok().select(tokens, 2)) == [0, 2]
    assert picks(MMTok().select(VisualTokens(torch.ones(3, 4)), 2)) == [0, 1]
