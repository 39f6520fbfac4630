"""FlowCut by its definition, and against a vision tower that hides what it drops."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from tokenprune import apply_pruning, pruning, remove_pruning
from tokenprune.policies import FlowCut

from ..support.towers import deep_llava, features, pixels, record_cuts, tower_of
from .inputs import tower_view


def tower_of_heads(q, k, v, n_keep, **more):
    """A view of (H, M, d) queries, keys and values of one picture, CLS first."""
    view = tower_view(k[0], k[0], n_keep, cls=True, **more)
    return dataclasses.replace(view, query=q[None], key=k[None], value=v[None], scaling=0.5)


def flow_and_score(q, k, v):
    """Shares of attention and scores by the paper's formula, from (H, M, d), CLS first."""
    paid = torch.stack([(0.5 * q[h, 0] @ k[h].T).softmax(-1) for h in range(len(q))]).mean(0)[1:]
    alike = torch.stack([(v[h] @ v[h, 0]).softmax(-1) for h in range(len(q))]).mean(0)[1:]
    return paid / paid.sum(), (paid / paid.sum() + alike / alike.sum()) * v.mean(0)[1:].abs().sum(1)


@pytest.mark.parametrize("by_entropy", [True, False])
def test_flowcut_is_its_definition(by_entropy):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 13, 4, generator=generator).double()
    memory = {"score": torch.rand(1, 12).double()}
    before = memory["score"].clone()
    cut = FlowCut(every=1, momentum=0.25, by_entropy=by_entropy).encoder_select(
        tower_of_heads(3 * q, k, v, 2, n_cuts=4, cut=1, memory=memory)
    )
    flow, score = flow_and_score(3 * q, k, v)
    score = 0.25 * before[0] + 0.75 * score
    share = float(-(flow * flow.log()).sum() / math.log(12)) if by_entropy else 0.0
    leaving = round(10 / 2**0.5 * (1 - share**2))  # ten too many, two layers left
    assert leaving == (3 if by_entropy else 7)
    kept = score.topk(12 - leaving).indices.sort().values
    assert cut.keep[0].tolist() == [0, *(kept + 1).tolist()] and not cut.has_pads
    torch.testing.assert_close(memory["score"][0], score[kept])


def test_flowcut_renews_its_score_where_it_drops_nothing():
    q, k, v = torch.randn(3, 2, 9, 4, generator=torch.Generator().manual_seed(1)).double()
    memory: dict = {}
    policy = FlowCut(momentum=0.5)
    assert policy.encoder_select(tower_of_heads(q, k, v, 2, n_cuts=2, cut=0, memory=memory)) is None
    cut = policy.encoder_select(tower_of_heads(k, v, q, 2, n_cuts=2, cut=1, memory=memory))
    score = flow_and_score(q, k, v)[1] / 2 + flow_and_score(k, v, q)[1] / 2
    assert (cut.keep[0, 1:] - 1).tolist() == score.topk(2).indices.sort().values.tolist()


def test_flowcut_steps_end_at_the_last_border():
    hidden = 9 * F.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    acts = [
        FlowCut(by_entropy=False).encoder_select(tower_view(hidden, hidden, 2, n_cuts=5, cut=cut)) is not None
        for cut in range(5)
    ]
    assert acts == [True, False, True, False, True]


def test_flowcut_pads_the_pictures_of_which_more_leave():
    """One picture's attention is even, so that none leaves; of the other, all but one token is ignored."""
    key = torch.zeros(2, 1, 7, 2)
    key[1, 0, 3, 0] = 50
    value = torch.linspace(1, 2, 7)[None, None, :, None].expand(2, 1, -1, 2)
    memory: dict = {}
    view = dataclasses.replace(
        tower_view(key[0, 0], key[0, 0], 2, cls=True, n_cuts=3, memory=memory),
        hidden=key[:, 0], query=torch.ones_like(key), key=key, value=value, sizes=torch.ones(2, 7),
    )  # fmt: skip
    policy = FlowCut(every=1, momentum=0.0)
    cut = policy.encoder_select(view)
    assert cut.keep.tolist() == [[*range(7)]] * 2 and cut.has_pads
    assert cut.sizes.tolist() == [[1.0] * 7, [1, 0, 0, 1, 0, 1, 1]] and memory["counts"] == [6, 3]
    last = policy.encoder_select(dataclasses.replace(view, cut=2, sizes=cut.sizes))
    assert not last.has_pads and last.keep.tolist() == [[0, 5, 6], [0, 3, 6]]


@pytest.fixture(scope="module")
def sharp():
    """A deeper tower that attends to few tokens, so that the entropy differs between pictures."""
    model = deep_llava()
    for layer in tower_of(model).encoder.layers:
        layer.self_attn.q_proj.weight.data *= 30
    return model


@torch.no_grad()
@pytest.mark.parametrize(("every", "by_entropy"), [(1, True), (2, True), (1, False), (3, False)])
def test_flowcut_equals_hiding_tokens_in_the_tower(sharp, every, by_entropy):
    images = pixels()
    got, left, layers = record_cuts(sharp, images, FlowCut(every=every, by_entropy=by_entropy), 0.25)
    counts = [[len(set(row)) for row in x.tolist()] for x in left]
    assert counts == sorted(counts, reverse=True) and counts[-1] == [1 + 9] * 3
    assert any(len(set(row)) > 1 for row in counts) == by_entropy

    def hide(i):
        hidden = torch.full((len(images), 1, 1, 37), -torch.inf, dtype=torch.float64)
        hidden[:, 0, 0].scatter_(1, left[i], 0.0)
        return lambda module, args, kwargs: ((args[0], hidden.expand(-1, -1, 37, -1), *args[2:]), kwargs)

    handles = [layer.register_forward_pre_hook(hide(i), with_kwargs=True) for i, layer in enumerate(layers[1:6])]
    try:
        expected = features(sharp, images)
    finally:
        for handle in handles:
            handle.remove()
    kept = left[-1][:, 1:] - 1
    index = kept[..., None].expand(-1, -1, expected.shape[2])
    torch.testing.assert_close(got.gather(1, index), expected.gather(1, index), rtol=0, atol=1e-9)
    assert (got == 0).all(-1).sum(1).tolist() == [36 - 9] * 3
    with pruning(sharp, FlowCut(every=every, by_entropy=by_entropy), 0.25):
        for i in range(3):  # no picture depends on the others
            torch.testing.assert_close(features(sharp, images[i : i + 1])[0], got[i], rtol=0, atol=1e-9)


@torch.no_grad()
def test_flowcut_says_what_flash_attention_cannot_take(sharp, monkeypatch):
    stage = apply_pruning(sharp, FlowCut(every=1), 0.25).model._tokenprune.encoder
    config = stage.layers[0].self_attn.config
    cut = stage._cut

    def then_flash(call, *args):
        hidden = cut(call, *args)
        monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
        return hidden

    stage._cut = then_flash
    try:
        with pytest.raises(ValueError, match="FlashAttention does not take; use sdpa in the vision tower"):
            features(sharp, pixels())
    finally:
        remove_pruning(sharp)


@pytest.mark.parametrize("options", [{"every": 0}, {"every": True}, {"momentum": 1.0}, {"by_entropy": 1}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FlowCut(**options)
