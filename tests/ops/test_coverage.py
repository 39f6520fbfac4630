"""`coverage_select`."""

import pytest
import torch
from hypothesis import strategies as st

from tokenprune.ops import coverage_select, implementation

from .cases import FAST, batches, check_picks, on_cases


@on_cases(500, batches(), st.data())
def test_coverage_is_the_references_to_the_bit(name, case, data):
    """Similarities in sixteenths and qualities that are powers of two: gains are exact in any order of summing."""
    x, _, mask, k = case
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    shape = (len(x), data.draw(st.integers(1, 30)), x.shape[1])
    similarity = (torch.randint(-8, 17, shape, generator=generator) / 16).to(x.device, x.dtype)
    if data.draw(st.booleans()):
        similarity[:] = similarity[:, :, :1]  # every candidate alike
    quality = None
    if data.draw(st.booleans()):
        quality = 2.0 ** torch.randint(-2, 3, x.shape[:2], generator=generator).to(x.device)
    check_picks(name, coverage_select, similarity, k, quality, mask)


@pytest.mark.parametrize("name", ["reference", *FAST])
def test_coverage_by_hand(name):
    """Three targets: token 0 covers all a little, 1 and 2 cover one each entirely, 3 repeats 1."""
    similarity = torch.tensor([[[0.5, 1.0, 0.0, 1.0], [0.5, 0.0, 0.75, 0.0], [0.5, 0.0, 0.0, 0.0]]])
    with implementation(name):
        # gains 1.5, 1, .75, 1; then .5, .25, .5: the tie goes to token 1; then .25 and 0
        assert coverage_select(similarity, 4)[0].tolist() == [0, 1, 2, 3]
        # token 3 is wanted thrice as much: 3; then 1 (0 adds .5 + .5), 0.75 and 0
        assert coverage_select(similarity, 4, torch.tensor([[1.0, 1, 1, 3]]))[0].tolist() == [3, 0, 2, 1]
