"""SCOPE by its definition."""

import torch
import torch.nn.functional as F

from tokenprune import VisualTokens
from tokenprune.policies import Scope

from .inputs import picks


def test_scope_is_its_definition():
    generator = torch.Generator().manual_seed(2)
    features, attention = torch.randn(30, 8, generator=generator), torch.rand(30, generator=generator)
    unit = F.normalize(features, dim=-1)
    similarity, covered, kept = unit @ unit.T, torch.zeros(30), []
    for _ in range(7):
        gain = [sum(max(0.0, float(s - c)) for s, c in zip(similarity[j], covered, strict=True)) for j in range(30)]
        score = [-1 if j in kept else gain[j] * float(attention[j]) ** 0.5 for j in range(30)]
        kept.append(max(range(30), key=score.__getitem__))
        covered = torch.maximum(covered, similarity[kept[-1]])
    assert picks(Scope(alpha=0.5).select(VisualTokens(features, encoder_attention=attention), 7)) == sorted(kept)
