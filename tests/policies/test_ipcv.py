"""IPCV: which patches stay, and in front of which layer."""

import dataclasses

import pytest
import torch

from tokenprune.policies import IPCV, make_policy

from .inputs import tower_view


def test_the_paper_s_layers_and_the_ends():
    assert dataclasses.astuple(IPCV().restoration(24)) == (7, 3, 10)
    assert IPCV(depth=0.01).restoration(24).layer == 1
    assert IPCV(depth=0.99).restoration(24).layer == 23
    assert IPCV().restoration(2).layer == 1


def test_what_moved_most_stays_and_hidden_patches_leave_first():
    hidden = torch.tensor([[9.0, 9], [1, 0], [0, -4], [2, 0], [0, 3], [5, 5]])
    view = tower_view(hidden, torch.zeros(6, 2), 3, before=torch.zeros(1, 6, 2))
    assert IPCV().encoder_select(view).keep.tolist() == [[0, 2, 5]]
    assert IPCV().encoder_select(dataclasses.replace(view, cls=True)).keep.tolist() == [[0, 2, 4, 5]]
    sizes = torch.tensor([[1.0, 1, 1, 1, 1, 0]])
    assert IPCV().encoder_select(dataclasses.replace(view, sizes=sizes)).keep.tolist() == [[0, 2, 4]]


@pytest.mark.parametrize("options", [{"depth": 0.0}, {"depth": 1.0}, {"stabilised": -1}, {"neighbours": 0}])
def test_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make_policy("ipcv", **options)
