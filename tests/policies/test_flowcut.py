"""FlowCut by its definition, and against a vision tower that hides what it drops."""

import pytest
import torch
import torch.nn.functional as F

from tokenprune.policies import FlowCut

from ..support.towers import features, pixels, record_cuts
from .inputs import tower_view


def test_flowcut_is_its_definition():
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 7, 4, generator=generator).double()
    memory = {"score": torch.rand(1, 6).double()}
    before = memory["score"].clone()
    cut = FlowCut(every=1, momentum=0.25).encoder_select(
        tower_view(v, k, 2, cls=True, query=q, value=v, n_cuts=3, cut=1, memory=memory)
    )
    paid = (q[0] @ k.T).softmax(-1)[1:]
    score = (paid / paid.sum() + (v[1:] @ v[0] / 2).softmax(0)) * v[1:].abs().sum(1)
    score = 0.25 * before[0] + 0.75 * score
    leaving = int(4 / 2**0.5)  # four too many, this step and one more
    kept = score.topk(6 - leaving).indices.sort().values
    assert cut.keep[0].tolist() == [0, *(kept + 1).tolist()]
    torch.testing.assert_close(memory["score"][0], score[kept])


def test_flowcut_steps_end_at_the_last_border():
    hidden = F.normalize(torch.randn(9, 4), dim=-1)
    acts = [
        FlowCut(every=2).encoder_select(tower_view(hidden, hidden, 2, n_cuts=5, cut=cut)) is not None
        for cut in range(5)
    ]
    assert acts == [True, False, True, False, True]


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 2, 3])
def test_flowcut_equals_hiding_tokens_in_the_tower(deep, every):
    images = pixels()
    got, left, layers = record_cuts(deep, images, FlowCut(every=every), 0.25)
    assert [x.shape[1] for x in left] == sorted((x.shape[1] for x in left), reverse=True)
    assert left[-1].shape[1] == 1 + 9 and len({x.shape[1] for x in left}) == {1: 5, 2: 3, 3: 3}[every]

    def hide(i):
        hidden = torch.full((len(images), 1, 1, 37), -torch.inf, dtype=torch.float64)
        hidden[:, 0, 0].scatter_(1, left[i], 0.0)
        return lambda module, args, kwargs: ((args[0], hidden.expand(-1, -1, 37, -1), *args[2:]), kwargs)

    handles = [layer.register_forward_pre_hook(hide(i), with_kwargs=True) for i, layer in enumerate(layers[1:6])]
    try:
        expected = features(deep, images)
    finally:
        for handle in handles:
            handle.remove()
    kept = left[-1][:, 1:] - 1
    index = kept[..., None].expand(-1, -1, expected.shape[2])
    torch.testing.assert_close(got.gather(1, index), expected.gather(1, index), rtol=0, atol=1e-9)
    assert (got == 0).all(-1).sum(1).tolist() == [36 - 9] * 3


@pytest.mark.parametrize("options", [{"every": 0}, {"every": True}, {"momentum": 1.0}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FlowCut(**options)
