"""`topk_select` and `topk_gather`."""

import torch
from hypothesis import strategies as st

from tokenprune.ops import topk_gather, topk_select

from .cases import DTYPES, answers, batches, on_cases


@on_cases(2000, batches(), st.sampled_from(["some", "none", "planes"]), st.data())
def test_topk_gather_is_the_references_to_the_bit(name, case, kind, data):
    x, _, mask, k = case
    batch, n, _ = x.shape
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    levels = torch.tensor([-torch.inf, -1.5, -0.0, 0.0, 1e-30, 2.0, torch.inf, torch.nan])
    scores = levels[torch.randint(len(levels), (batch, n), generator=generator)]
    if data.draw(st.booleans()):
        scores = torch.randn(batch, n, generator=generator)
    scores = scores.to(x.device, data.draw(st.sampled_from(DTYPES)))
    shape = {"some": (batch, n), "planes": (3, batch, n)}.get(kind)
    positions = None if shape is None else torch.randint(0, 10**6, shape, generator=generator).to(x.device)
    expected, answer = answers(name, topk_gather, scores, x, k, mask, positions)
    assert len(answer) == len(expected) == (2 if positions is None else 3)
    for got, want in zip(answer, expected, strict=True):
        assert got.dtype == want.dtype and torch.equal(got, want)


def test_topk_select_is_stable():
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0])
    assert topk_select(scores, 3).tolist() == [1, 2, 3]


def test_gradients_flow_through_the_gather():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.4, 0.3, 0.2, 0.1]])
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    features = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    _, gathered = topk_gather(scores, features, 2, mask)
    gathered.sum().backward()
    assert features.grad[..., 0].tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]
