"""EADP: words that point somewhere, smoothed over neighbours."""

import math

import pytest
import torch

from tokenprune import VisualTokens
from tokenprune.policies import EADP

from .inputs import picks


def test_eadp_drops_words_that_point_everywhere():
    """One word is like token 2 alone, four are like all tokens a little."""
    features = torch.eye(4)
    pointed, vague = torch.tensor([[0.1, 0, 5, 0]]), torch.tensor([[1.0, 1, 1, 1]])
    tokens = VisualTokens(features, question=torch.cat([vague, pointed, vague, vague, vague]))
    importance = EADP(alpha=0).importance(tokens)
    assert importance.argmax() == 2 and float(importance[3]) == 0
    assert picks(EADP(alpha=0).select(tokens, 1)) == [2]
    assert EADP(alpha=0, inverted=True).importance(tokens).argmin() == 2


def test_eadp_smooths_over_neighbours():
    tokens = VisualTokens(torch.eye(9), grids=((1, 3, 3),), question=5 * torch.eye(9)[4:5])
    importance = EADP().importance(tokens).view(3, 3)
    bell = [math.exp(-0.5), 1, math.exp(-0.5)]
    expected = torch.tensor(bell)[:, None] * torch.tensor(bell) / sum(bell) ** 2
    assert importance[1, 1] == pytest.approx(float(expected[1, 1]), abs=1e-5)
    assert importance[0, 1] == pytest.approx(2 * float(expected[0, 1]), abs=1e-5)  # seen again in the mirror
