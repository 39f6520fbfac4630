"""FoPru: by token, and by row."""

import pytest
import torch

from tokenprune import VisualTokens
from tokenprune.policies import FoPru

from .inputs import picture


def test_fopru_rank_and_row_differ():
    """4 x 4: the brightest tokens are scattered, the brightest rows are not."""
    scores = torch.tensor([[9, 0, 0, 0], [2, 2, 2, 2], [0, 0, 0, 8], [3, 3, 0, 3]], dtype=torch.float32).flatten()
    tokens = picture(4, 4, encoder_attention=scores)
    assert FoPru().select(tokens, 4).indices.tolist() == [0, 11, 12, 13]  # 9, 8, then the first two 3s
    # rows sum to 9, 8, 8, 9; the lower index wins a tie
    assert FoPru(strategy="row").select(tokens, 4).indices.tolist() == [0, 1, 2, 3]
    assert FoPru(strategy="row").select(tokens, 8).indices.tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    assert FoPru(strategy="row").select(tokens, 12).indices.tolist() == [*range(8), *range(12, 16)]
    assert len(FoPru(strategy="row").select(tokens, 1).indices) == 4  # at least one row
    with pytest.raises(ValueError, match="accepted: 'rank', 'row'"):
        FoPru(strategy="column")
    with pytest.raises(ValueError, match="needs the raster"):
        FoPru(strategy="row").select(VisualTokens(torch.randn(16, 4), encoder_attention=scores), 4)
