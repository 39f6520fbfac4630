"""Images of one size are picked from together on the host, with the picks that each has alone."""

import pytest
import torch

from tokenprune.ops import max_min_select, max_sum_select


def alone(op, features, k, first, **options):
    rows = range(len(features))
    return torch.cat([op(features[i : i + 1], k, None if first is None else first[i : i + 1], **options) for i in rows])


@pytest.mark.parametrize("length", [0.0, 0.75])
@pytest.mark.parametrize("picked", [None, 1, 5])
@pytest.mark.parametrize("op", [max_min_select, max_sum_select])
def test_a_batch_has_the_picks_of_each_image_alone(op, picked, length):
    if op is max_sum_select and (picked is None or length):
        pytest.skip("max_sum_select takes first picks and no length")
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 90, 24, generator=generator)
    features[1, 45:] = features[1, :45].clone()  # duplicates
    features[2, 7] = 0
    features[3] = features[3, :1].clone()  # all alike
    first = None
    if picked is not None:
        first = torch.stack([torch.randperm(90, generator=generator)[:picked] for _ in features])
        first[4, 1:] = -1
    options = {"length": length} if op is max_min_select else {}
    for k in (2, 9, 90):
        assert torch.equal(op(features, k, first, **options), alone(op, features, k, first, **options))
