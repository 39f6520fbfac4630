"""ToDRE: its two objectives, its pivot, and what it removes in the decoder."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune import VisualTokens, pruning, pruning_report
from tokenprune.ops import max_sum_select
from tokenprune.policies import ToDRE

from ..builders import IMAGE
from ..families import Picture, get_model, make_batch, ragged_batch, text_of
from ..oracles import assert_same, deep_masked, generate, keep_mask, upper_masks
from .inputs import exact_features


def brute_force_max_sum(rows: list[list], k: int, first: int) -> list[int]:
    """ToDRE v2 by its definition, lowest index first among equals."""
    picked = [first]
    while len(picked) < k:
        rest = [i for i in range(len(rows)) if i not in picked]
        picked.append(min(rest, key=lambda i: (sum(rows[p][i] for p in picked), i)))
    return picked


@settings(max_examples=300, deadline=None)
@given(exact_features(), st.data())
def test_max_sum_is_its_definition(case, data):
    features, k = case
    first = data.draw(st.integers(0, len(features) - 1))
    rows = [[Fraction(int(v)) for v in row] for row in features.tolist()]
    cosine = [[sum(a * b for a, b in zip(p, q, strict=True)) / 4 for q in rows] for p in rows]
    picks = max_sum_select(features[None], k, torch.tensor([first]))[0].tolist()
    assert picks == brute_force_max_sum(cosine, k, first)


def test_k_center_and_max_sum_differ():
    """In the plane, from 0 degrees: both go to 150; then max-sum takes its neighbour, k-center the gap."""
    angles = torch.tensor([0.0, 60.0, 150.0, 140.0]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], 1)
    tokens = VisualTokens(features, encoder_attention=torch.tensor([1.0, 0, 0, 0]))
    # 140: cos 140 + cos 10 = .22; 60: cos 60 + cos 90 = .5
    assert ToDRE(objective="max-sum").select(tokens, 3).indices.tolist() == [0, 2, 3]
    assert ToDRE(objective="k-center").select(tokens, 3).indices.tolist() == [0, 1, 2]


def test_todre_pivots():
    attention = torch.zeros(16 + 24)
    attention[20], attention[7] = 9.0, 5.0
    tokens = VisualTokens(torch.randn(40, 4), grids=((1, 4, 4), (1, 4, 6)), encoder_attention=attention)
    assert ToDRE()._pivot(tokens) == 7  # the thumbnail's
    assert ToDRE()._pivot(VisualTokens(torch.randn(40, 4), grids=((1, 4, 10),), encoder_attention=attention)) == 20
    without = VisualTokens(torch.tensor([[1.0, 0], [1.1, 0], [9.0, 0], [1.0, 0.1]]))
    assert ToDRE(pivot_without_cls="farthest")._pivot(without) == 2
    assert {int(ToDRE(seed=s)._pivot(without)) for s in range(40)} == {0, 1, 2, 3}
    for bad in ({"objective": "x"}, {"pivot_without_cls": "x"}, {"depths": (0.5, 1.0)}):
        with pytest.raises(ValueError, match=r"accepted|shares of the layers"):
            ToDRE(**bad)


def removal_alone(**options):
    """ToDRE's second stage without its first: all tokens enter the decoder."""
    policy = ToDRE(**options)
    policy.stage = "decoder"
    return policy


def test_todre_checks_several_layers():
    model, batch = get_model("llava"), ragged_batch("llava")
    with pruning(model, removal_alone(depths=(0.4, 0.7), tau=2.0), 35, positions="original"):
        run = generate(model, batch.inputs)
        records = pruning_report(model)
    assert {r.deep_layer for r in records} == {1}  # gone at the first check
    assert_same(run, deep_masked(model, batch, keep_mask(batch, records), upper_masks(batch, records)))


def test_todre_removes_where_text_and_pictures_ignore_each_other():
    """Both shares, computed from eager maps, against the threshold; each row decides for itself."""
    model = get_model("llava")
    batch = make_batch("llava", [[3, Picture((24, 24)), 2, Picture((24, 24)), 5], [4, Picture((24, 24)), 42]])
    text = text_of(model)
    before = text.config._attn_implementation
    text.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = model(**batch.inputs, output_attentions=True).attentions[1].mean(1)
    finally:
        text.set_attn_implementation(before)
    ids, shares = batch.inputs["input_ids"], []
    for row in range(2):
        visual = (ids[row] == IMAGE).nonzero()[:, 0]
        words = (ids[row] != IMAGE).nonzero()[:, 0]
        words = words[words > visual[0]]
        to_visual = maps[row][words][:, visual].sum(1).mean()
        to_text = maps[row][visual][:, words].sum(1).mean()
        shares.append(max(to_visual.item(), to_text.item()))
    assert maps[1][(ids[1] == IMAGE)][:, -4:].sum() == 0  # pictures do not see what follows them
    low, high = sorted(shares)
    for tau, removed in ((low - 1e-4, 0), ((low + high) / 2, 1), (high + 1e-4, 2)):
        with pruning(model, removal_alone(tau=tau), 35):
            generate(model, batch.inputs, steps=1)
            rows = {r.sample for r in pruning_report(model) if r.deep_layer is not None}
        assert len(rows) == removed
        assert removed != 1 or rows == {shares.index(low)}
