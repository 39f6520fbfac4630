"""Random: what its draw depends on."""

import torch

from tokenprune.policies import Random

from .inputs import picture


def test_random_depends_on_seed_place_text_and_size_alone():
    a = Random(seed=1).select(picture(6, 6), 9).indices
    assert torch.equal(a, Random(seed=1).select(picture(6, 6), 9).indices)
    assert not torch.equal(a, Random(seed=2).select(picture(6, 6), 9).indices)
    assert not torch.equal(a, Random(seed=1).select(picture(6, 6, index=1), 9).indices)
    words = torch.randn(2, 5, 16)
    drawn = [Random().select(picture(6, 6, text=text), 9).indices for text in words]
    assert not torch.equal(*drawn)
    assert torch.equal(drawn[0], Random().select(picture(6, 6, text=words[0].clone()), 9).indices)
    counts = torch.zeros(36)
    for seed in range(600):
        counts[Random(seed=seed).select(picture(6, 6), 9).indices] += 1
    assert counts.min() > 100  # expected 150
    assert counts.max() < 200
