"""ToMe: what merges, and that merging equal tokens loses nothing."""

import copy

import pytest
import torch

from tokenprune import pruning
from tokenprune.policies import ToMe

from ..builders import LLAVA_SIDE
from ..support.towers import features, tower_of
from .inputs import tower_view


def test_tome_by_hand():
    """Tokens 0 and 2 propose to 1 and 3; 2 is most like 3 and joins it, weighted by its two patches."""
    keys = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1.0], [0.1, 1.0]])
    hidden = torch.tensor([[1.0], [2], [3], [6]])
    cut = ToMe().encoder_select(tower_view(hidden, keys, 3, sizes=[1.0, 1, 2, 1]))
    assert cut.keep.tolist() == [[0, 1, 3]] and cut.sizes.tolist() == [[1, 1, 3]]
    torch.testing.assert_close(cut.hidden[0, :, 0], torch.tensor([1.0, 2, 4]))
    both = ToMe().encoder_select(tower_view(hidden, keys, 2))
    assert both.keep.tolist() == [[1, 3]] and both.hidden[0, :, 0].tolist() == [1.5, 4.5]
    one = ToMe().encoder_select(tower_view(hidden, keys, 1))  # a second round: 1 joins 3
    assert one.keep.tolist() == [[3]] and one.hidden.item() == 3 and one.sizes.item() == 4
    assert ToMe().encoder_select(tower_view(hidden, keys, 4)) is None


def test_tome_never_merges_cls():
    keys, hidden = torch.ones(5, 2), torch.arange(5.0)[:, None]
    for n_keep in (1, 2, 3):
        cut = ToMe().encoder_select(tower_view(hidden, keys, n_keep, cls=True))
        assert cut.keep[0, 0] == 0 and cut.hidden[0, 0] == 0 and cut.sizes[0, 0] == 1
        assert cut.keep.shape[1] == n_keep + 1 and cut.sizes.sum() == 5


def test_tome_shares_the_surplus_out_over_the_borders():
    keys, hidden = torch.randn(11, 3), torch.randn(11, 3)
    assert ToMe().encoder_select(tower_view(hidden, keys, 4, n_cuts=3)).keep.shape[1] == 11 - 3
    assert ToMe().encoder_select(tower_view(hidden, keys, 4, n_cuts=3, cut=2)).keep.shape[1] == 4


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_merging_equal_tokens_loses_nothing(deep, implementation):
    """Without places, patches of one colour are alike: merged, and as loud as they were, they say the same."""
    model = copy.deepcopy(deep)
    tower_of(model).embeddings.position_embedding.weight.zero_()
    model.set_attn_implementation({"vision_config": implementation})
    images = torch.ones(1, 3, LLAVA_SIDE, LLAVA_SIDE, dtype=torch.float64)
    images[..., LLAVA_SIDE // 3 :] = -0.5  # two colours: tokens of two kinds
    whole = features(model, images)[0]
    with pruning(model, "tome", 18):
        merged = features(model, images)[0]
    kept = (merged != 0).any(-1)
    assert int(kept.sum()) == 18
    atol = 1e-6 if implementation == "eager" else 1e-9  # whose softmax is float32
    torch.testing.assert_close(merged[kept], whole[kept], rtol=0, atol=atol)
    with pruning(model, "tome", 18, proportional_attention=False):
        assert (features(model, images)[0][kept] - whole[kept]).abs().max() > 1e-3
