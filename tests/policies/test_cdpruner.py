"""CDPruner: diversity weighted by the question."""

import pytest
import torch
import torch.nn.functional as F

from tokenprune import VisualTokens
from tokenprune.policies import CDPruner

from .inputs import directions, picks


def test_cdpruner_without_a_question_is_diversity_alone():
    tokens = VisualTokens(directions(0, 5, 90, 200))
    # nothing chosen: 0 by its index; given it, 90 has most left; then nothing has, in the plane
    assert picks(CDPruner().select(tokens, 2)) == [0, 2]


def test_cdpruner_prefers_what_is_asked_for():
    """Tokens 1 and 2 are alike; the question is like 2, then 1; 0 and 3 stand apart."""
    features = F.normalize(torch.tensor([[0.0, 0, 1], [1, 0.3, 0], [1, 0.1, 0], [0, 1, 0]]), dim=-1)
    tokens = VisualTokens(features, question=torch.tensor([[1.0, 0, 0], [1.0, 0, 0.2]]))
    relevance = CDPruner().relevance(tokens)
    assert relevance.argmax() == 2 and float(relevance.max()) == pytest.approx(1, abs=1e-5)
    assert picks(CDPruner().select(tokens, 1)) == [2]
    assert picks(CDPruner(weight=0).select(tokens, 1)) == [0]
