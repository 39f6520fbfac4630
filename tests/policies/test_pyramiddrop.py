"""PyramidDrop: its schedule."""

import torch

from tokenprune import Schedule
from tokenprune.policies import PyramidDrop

from .inputs import decoder_view, kept_places


def test_pyramiddrop_follows_its_schedule():
    attention = torch.zeros(6, 6)
    attention[5] = torch.tensor([0.1, 0.4, 0.3, 0.2, 0, 0])
    policy = PyramidDrop(Schedule((0.25, 0.5)))
    assert policy.decoder_layers(4, 1) == [1, 2]
    first = policy.decoder_select(decoder_view([[0, 1, 2, 3]], [1], attention, layer=1))
    assert kept_places(first) == [[1, 2]]
    last = policy.decoder_select(decoder_view([[1, 2]], [1], attention, layer=2, entered=[4]))
    assert kept_places(last) == [[0]]
    assert policy.decoder_select(decoder_view([[1]], [1], attention, layer=2, entered=[4])) is None
