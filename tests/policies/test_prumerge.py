"""PruMerge and PruMerge+: outliers, spacing and merging."""

import torch

from tokenprune import VisualTokens
from tokenprune.policies import PruMerge, PruMergePlus

from .inputs import directions, picks


def test_prumerge_by_hand():
    """Token 0 stays with its nearest by key (2); the rest becomes one token at the place of 3, the most attended."""
    tokens = VisualTokens(
        torch.tensor([[1.0], [2], [3], [4]]),
        encoder_attention=torch.tensor([0.5, 0.1, 0.15, 0.25]),
        encoder_keys=directions(0, 90, 10, 180),
    )
    kept = PruMerge(cluster=1).select(tokens, 2)
    assert picks(kept) == [0, 3]
    torch.testing.assert_close(kept.features, torch.tensor([[1 + 0.15 * 3], [0.1 * 2 + 0.15 * 3 + 0.25 * 4]]))
    assert picks(PruMerge(cluster=1).select(tokens, 1)) == [0]


def test_prumerge_counts_outliers():
    attention = torch.full((40,), 0.01)
    attention[torch.arange(0, 40, 3)] += 0.001
    attention[[5, 17]] = 0.3
    tokens = VisualTokens(torch.randn(40, 4), encoder_attention=attention, encoder_keys=torch.randn(40, 4))
    assert {5, 17} < set(picks(PruMerge().select(tokens, None))) and len(picks(PruMerge().select(tokens, None))) == 3
    plus = picks(PruMergePlus().select(tokens, None))
    assert {5, 17} | set(range(0, 40, 6)) <= set(plus)  # a step of 40 / 2 / 3


def test_prumerge_plus_spaces_three_quarters_of_its_budget():
    attention = torch.zeros(21)
    attention[[0, 1]] = 1.0
    tokens = VisualTokens(torch.randn(21, 4), encoder_attention=attention, encoder_keys=torch.randn(21, 4))
    kept = picks(PruMergePlus().select(tokens, 10))  # nine and the rest's: two attended, seven of 2 to 20
    assert len(kept) == 10 and {0, 1, 3, 6, 8, 11, 14, 16, 19} <= set(kept)
