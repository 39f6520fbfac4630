"""What the later policies pick, worked out by hand or by the definition spelt out."""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune import DecoderView, Schedule, VisualTokens
from tokenprune.ops import max_min_select
from tokenprune.policies import (
    DART,
    EADP,
    EVS,
    VTW,
    Auto,
    CDPruner,
    FastVID,
    HoloV,
    MMTok,
    PruMerge,
    PruMergePlus,
    PyramidDrop,
    Scope,
    SparseVLM,
    VidCom2,
    VisionZip,
    VisPruner,
)
from tokenprune.policies.quota import shares
from tokenprune.policies.spacing import filled


def directions(*degrees: float) -> torch.Tensor:
    """Unit vectors in the plane."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def picks(selection) -> list[int]:
    return selection.indices.tolist()


def test_visionzip_by_hand():
    """Two dominant tokens; of the other four, 1 and 4 are targets; 2 joins 1, and 5 joins 4 by their keys."""
    features = torch.arange(12.0).view(6, 2)
    tokens = VisualTokens(
        features,
        encoder_attention=torch.tensor([9.0, 1, 2, 8, 3, 4]),
        encoder_keys=directions(0, 10, 20, 0, 80, 90),
    )
    kept = VisionZip(contextual=0.5).select(tokens, 4)
    assert picks(kept) == [0, 1, 3, 4]
    assert torch.equal(kept.features, torch.stack([features[i] for i in (0, 1, 3, 4)]) + torch.tensor(
        [[0.0, 0], [4, 5], [0, 0], [10, 11]]))  # fmt: skip
    assert VisionZip(contextual=0).select(tokens, 4).features is None


def test_visionzip_averages_what_joined():
    tokens = VisualTokens(
        torch.tensor([[1.0], [10], [20], [60]]),
        encoder_attention=torch.tensor([9.0, 0, 0, 0]),
        encoder_keys=directions(0, 45, 45, 45),
    )
    kept = VisionZip(contextual=0.5).select(tokens, 2)
    assert picks(kept) == [0, 1] and kept.features.tolist() == [[1.0], [10 + 40]]  # the mean of 20 and 60


def test_visionzip_merges_before_the_projector():
    project = torch.nn.Linear(3, 2)
    tokens = VisualTokens(
        torch.zeros(4, 2), encoder_features=torch.randn(4, 3), project=project,
        encoder_attention=torch.tensor([9.0, 0, 0, 0]), encoder_keys=directions(0, 45, 45, 45),
    )  # fmt: skip
    kept = VisionZip(contextual=0.5).select(tokens, 2)
    x = tokens.encoder_features
    torch.testing.assert_close(kept.features[1], project(x[1] + (x[2] + x[3]) / 2))


def test_prumerge_by_hand():
    """Token 0 stays with its nearest by key (2); the rest becomes one token at the place of 3, the most attended."""
    tokens = VisualTokens(
        torch.tensor([[1.0], [2], [3], [4]]),
        encoder_attention=torch.tensor([0.5, 0.1, 0.15, 0.25]),
        encoder_keys=directions(0, 90, 10, 180),
    )
    kept = PruMerge(cluster=1).select(tokens, 2)
    assert picks(kept) == [0, 3]
    torch.testing.assert_close(kept.features, torch.tensor([[1 + 0.15 * 3], [0.1 * 2 + 0.15 * 3 + 0.25 * 4]]))
    assert picks(PruMerge(cluster=1).select(tokens, 1)) == [0]


def test_prumerge_counts_outliers():
    attention = torch.full((40,), 0.01)
    attention[torch.arange(0, 40, 3)] += 0.001
    attention[[5, 17]] = 0.3
    tokens = VisualTokens(torch.randn(40, 4), encoder_attention=attention, encoder_keys=torch.randn(40, 4))
    assert {5, 17} < set(picks(PruMerge().select(tokens, None))) and len(picks(PruMerge().select(tokens, None))) == 3
    plus = picks(PruMergePlus().select(tokens, None))
    assert {5, 17} | set(range(0, 40, 6)) <= set(plus)  # a step of 40 / 2 / 3


def test_prumerge_plus_spaces_three_quarters_of_its_budget():
    attention = torch.zeros(21)
    attention[[0, 1]] = 1.0
    tokens = VisualTokens(torch.randn(21, 4), encoder_attention=attention, encoder_keys=torch.randn(21, 4))
    kept = picks(PruMergePlus().select(tokens, 10))  # nine and the rest's: two attended, seven of 2 to 20
    assert len(kept) == 10 and {0, 1, 3, 6, 8, 11, 14, 16, 19} <= set(kept)


def test_vispruner_removes_doubles():
    """Token 5 is attended; of the others 0 doubles 1, 2 doubles 3 and 4 is alone: 0 and 2 leave."""
    features = torch.eye(4)[[0, 0, 1, 1, 2, 3]] + 0.01 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    tokens = VisualTokens(features, encoder_attention=torch.tensor([0, 0, 0, 0, 0, 1.0]))
    for step in (1, 2, 8):
        assert picks(VisPruner(important=0.25, step=step).select(tokens, 4)) == [1, 3, 4, 5]
    assert picks(VisPruner(important=1).select(tokens, 1)) == [5]


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 40), st.data())
def test_policies_meet_any_budget(n, data):
    """Budgets from one to all but one, on any number of tokens, in images and in videos."""
    t = data.draw(st.sampled_from([t for t in (1, 2, 3, 5) if n % t == 0]))
    k = data.draw(st.integers(1, n - 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    rows = torch.randn(n, 6, generator=generator)
    if data.draw(st.booleans()):
        rows = rows[:1].expand(n, -1).clone()
    tokens = VisualTokens(
        rows,
        grids=((t, 1, n // t),),
        question=torch.randn(data.draw(st.sampled_from([0, 1, 7])), 6, generator=generator),
        encoder_attention=torch.rand(n, generator=generator),
        encoder_keys=rows,
    )
    for policy in (VisionZip(), PruMerge(), PruMergePlus(), VisPruner(step=3), CDPruner(), HoloV(), Scope(), MMTok()):
        policy.select(tokens, k).check(n, k, repr(policy))
    for policy in (Auto(), EADP(), EVS(), VidCom2(), FastVID(every=2), FastVID(merged=1.0, segments=1)):
        policy.select(tokens, k).check(n, k, repr(policy))


def test_cdpruner_without_a_question_is_diversity_alone():
    tokens = VisualTokens(directions(0, 5, 90, 200))
    # nothing chosen: 0 by its index; given it, 90 has most left; then nothing has, in the plane
    assert picks(CDPruner().select(tokens, 2)) == [0, 2]


def test_cdpruner_prefers_what_is_asked_for():
    """Tokens 1 and 2 are alike; the question is like 2, then 1; 0 and 3 stand apart."""
    features = F.normalize(torch.tensor([[0.0, 0, 1], [1, 0.3, 0], [1, 0.1, 0], [0, 1, 0]]), dim=-1)
    tokens = VisualTokens(features, question=torch.tensor([[1.0, 0, 0], [1.0, 0, 0.2]]))
    relevance = CDPruner().relevance(tokens)
    assert relevance.argmax() == 2 and float(relevance.max()) == pytest.approx(1, abs=1e-5)
    assert picks(CDPruner().select(tokens, 1)) == [2]
    assert picks(CDPruner(weight=0).select(tokens, 1)) == [0]


def test_scope_is_its_definition():
    generator = torch.Generator().manual_seed(2)
    features, attention = torch.randn(30, 8, generator=generator), torch.rand(30, generator=generator)
    unit = F.normalize(features, dim=-1)
    similarity, covered, kept = unit @ unit.T, torch.zeros(30), []
    for _ in range(7):
        gain = [sum(max(0.0, float(s - c)) for s, c in zip(similarity[j], covered, strict=True)) for j in range(30)]
        score = [-1 if j in kept else gain[j] * float(attention[j]) ** 0.5 for j in range(30)]
        kept.append(max(range(30), key=score.__getitem__))
        covered = torch.maximum(covered, similarity[kept[-1]])
    assert picks(Scope(alpha=0.5).select(VisualTokens(features, encoder_attention=attention), 7)) == sorted(kept)


def test_mmtok_is_its_definition():
    generator = torch.Generator().manual_seed(4)
    features, words = torch.randn(12, 6, generator=generator), torch.randn(3, 6, generator=generator)
    unit, word = F.normalize(features, dim=-1), F.normalize(words, dim=-1)
    seen, meant = (unit @ unit.T / 0.3).softmax(-1), (word @ unit.T / 0.1).softmax(-1)

    def covered(some):
        return float(meant[:, some].amax(1).mean() + 0.7 * seen[:, some].amax(1).mean())

    kept: list[int] = []
    for _ in range(5):
        kept.append(max((j for j in range(12) if j not in kept), key=lambda j: covered([*kept, j])))
    policy = MMTok(text_temperature=0.1, vision_temperature=0.3, alpha=0.7)
    assert picks(policy.select(VisualTokens(features, question=words), 5)) == sorted(kept)


def test_mmtok_hears_the_question():
    features = torch.eye(5)
    for i in range(5):
        assert picks(MMTok().select(VisualTokens(features, question=features[i : i + 1]), 1)) == [i]
    assert picks(MMTok().select(VisualTokens(features), 1)) == [0]


def test_eadp_drops_words_that_point_everywhere():
    """One word is like token 2 alone, four are like all tokens a little."""
    features = torch.eye(4)
    pointed, vague = torch.tensor([[0.1, 0, 5, 0]]), torch.tensor([[1.0, 1, 1, 1]])
    tokens = VisualTokens(features, question=torch.cat([vague, pointed, vague, vague, vague]))
    importance = EADP(alpha=0).importance(tokens)
    assert importance.argmax() == 2 and float(importance[3]) == 0
    assert picks(EADP(alpha=0).select(tokens, 1)) == [2]
    assert EADP(alpha=0, inverted=True).importance(tokens).argmin() == 2


def test_eadp_smooths_over_neighbours():
    tokens = VisualTokens(torch.eye(9), grids=((1, 3, 3),), question=5 * torch.eye(9)[4:5])
    importance = EADP().importance(tokens).view(3, 3)
    bell = [math.exp(-0.5), 1, math.exp(-0.5)]
    expected = torch.tensor(bell)[:, None] * torch.tensor(bell) / sum(bell) ** 2
    assert importance[1, 1] == pytest.approx(float(expected[1, 1]), abs=1e-5)
    assert importance[0, 1] == pytest.approx(2 * float(expected[0, 1]), abs=1e-5)  # seen again in the mirror


def test_holov_gives_parts_their_share():
    """Two parts of four; the second is attended thrice as much: one and three of four, the best in each."""
    attention = torch.tensor([1.0, 4, 2, 1, 8, 2, 8, 6])
    tokens = VisualTokens(torch.ones(8, 3), encoder_attention=attention)
    assert picks(HoloV(parts=2).select(tokens, 4)) == [1, 4, 6, 7]
    assert picks(HoloV(parts=1).select(tokens, 4)) == [1, 4, 6, 7]
    assert picks(HoloV(parts=8).select(tokens, 3)) == [4, 6, 7]


def test_holov_adds_what_varies():
    features = directions(0, 0, 0, 90)
    tokens = VisualTokens(features, encoder_attention=torch.ones(4))
    # 90 degrees is as unlike each other: no variance; the others see two of their kind and one that is not
    assert 3 not in picks(HoloV(parts=1, alpha=1).select(tokens, 3))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 5)), min_size=1, max_size=8), st.data())
def test_shares_are_whole_and_fit(parts, data):
    sizes, weights = [s for s, _ in parts], torch.tensor([w for _, w in parts])
    total = data.draw(st.integers(0, sum(sizes)))
    out = shares(weights, sizes, total)
    assert sum(out) == total and all(0 <= n <= size for n, size in zip(out, sizes, strict=True))


def test_shares_by_hand():
    assert shares(torch.tensor([1.0, 1, 1]), [9, 9, 9], 7) == [3, 2, 2]
    assert shares(torch.tensor([8.0, 1, 1]), [3, 9, 9], 9) == [3, 3, 3]
    assert shares(torch.tensor([0.0, 0]), [2, 2], 3) == [2, 1]


def test_auto_begins_with_what_is_asked_for():
    """The first word is like tokens 4 and 5 alone, the second a little like all."""
    features = F.normalize(torch.eye(6)[[0, 0, 1, 2, 3, 3]] + 0.05, dim=-1)
    tokens = VisualTokens(features, question=torch.stack([torch.eye(6)[3], torch.ones(6)]))
    assert Auto(words=1).named(tokens, 2).tolist() == [4, 5]
    kept = picks(Auto(asked=0.5, words=1, diverse=1).select(tokens, 4))
    assert kept[2:] == [4, 5] and set(kept[:2]) < {0, 2, 3}  # and two of the three other kinds
    assert picks(Auto(asked=1.0, words=1, diverse=1).select(tokens, 2)) == [4, 5]
    without = VisualTokens(features)
    assert (
        picks(Auto(diverse=1).select(without, 3))
        == max_min_select(features[None], 3, length=0.75)[0].sort().values.tolist()
    )


def test_auto_goes_on_to_what_is_farthest():
    features = directions(0, 10, 90, 170) * torch.tensor([[1.0], [1], [1], [3]])
    tokens = VisualTokens(features, question=directions(5))
    auto = Auto(asked=0.5, diverse=1)
    named = auto.named(tokens, 1).tolist()
    assert named[0] in (0, 1) and picks(auto.select(tokens, 2)) == [*named, 3]


def test_auto_spaces_what_is_beyond_its_share():
    """Two of ten tokens may be chosen, those that stand out; three more are spaced among eight alike."""
    features = directions(0, 0, 0, 90, 0, 0, 0, 0, 270, 0)
    chosen_and_spaced = [1, 3, 5, 7, 8]
    auto = Auto(depths=(0.5,), diverse=0.2)
    assert picks(auto.select(VisualTokens(features), 2)) == [3, 8]
    assert picks(auto.select(VisualTokens(features), 5)) == chosen_and_spaced
    assert picks(Auto(diverse=0.01).select(VisualTokens(features), 1)) == [3]  # one at least
    seen = functools.partial(view, [list(range(10))], layer=2, hidden=features)
    assert kept_places(auto.deeper().deep_select(seen([5]))) == [chosen_and_spaced]
    # of twenty that entered four may be chosen: two that stand out, and the first of equals
    assert kept_places(auto.deeper().deep_select(seen([4], entered=[20]))) == [[0, 1, 3, 8]]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_filled_keeps_what_is_chosen_and_spaces_the_rest(data):
    n = data.draw(st.integers(1, 40))
    k = data.draw(st.integers(0, n))
    chosen = data.draw(st.permutations(range(n)))[: data.draw(st.integers(0, k))]
    out = filled(torch.tensor(chosen, dtype=torch.int64), n, k).tolist()
    assert out == sorted(set(out)) and len(out) == k and set(chosen) <= set(out)
    others = [i for i in range(n) if i not in chosen]
    ranks = [-1, *(others.index(i) for i in out if i not in chosen), len(others)]
    steps = [b - a for a, b in itertools.pairwise(ranks)]
    assert max(steps[1:-1], default=1) - min(steps[1:-1], default=1) <= 1
    assert len(steps) == 1 or abs(steps[0] - steps[-1]) <= 1


def test_auto_answers_inputs_of_all_kinds_in_one_call():
    generator = torch.Generator().manual_seed(0)
    inputs = [
        VisualTokens(torch.randn(n, 8, generator=generator), question=torch.randn(q, 8, generator=generator))
        for n, q in ((20, 3), (9, 0), (14, 1), (11, 0))
    ]
    together = Auto().select_many(inputs, [6, 4, 1, 3])
    assert [picks(s) for s in together] == [
        picks(Auto().select(each, k)) for each, k in zip(inputs, [6, 4, 1, 3], strict=True)
    ]


def test_auto_chooses_again_in_the_decoder():
    """Text and two pictures; of the first, tokens 0, 1 and 2 have become nearly the same, token 3 lies across."""
    hidden = directions(45, 0, 1, 2, 90, 0, 180)
    deeper = Auto(depths=(0.25, 0.5), diverse=1).deeper()
    assert deeper.deep_layers(32, 3) == [8, 16] and deeper.deep_layers(4, 3) == [3]
    seen = functools.partial(view, [[1, 2, 3, 4], [5, 6]], layer=2, hidden=hidden)
    assert kept_places(deeper.deep_select(seen([2, 2]))) == [[0, 3], [0, 1]]
    assert kept_places(deeper.deep_select(seen([3, 1]))) == [[0, 2, 3], [0]]
    # at the first cut half of the way: of four that shall be one, two
    assert kept_places(deeper.deep_select(seen([1, 2], layer=1))) == [[0, 3], [0, 1]]
    assert kept_places(deeper.deep_select(seen([4, 2]))) == [[0, 1, 2, 3], [0, 1]]
    assert Auto(depths=()).deeper() is None


# ---------------------------------------------------------------- videos


def video(t, h, w, features, **more):
    return VisualTokens(features, grids=((t, h, w),), kind="video", **more)


def test_evs_by_hand():
    """Three frames of two tokens: the first whole, then what changed most."""
    features = torch.cat([directions(0, 0), directions(0, 30), directions(90, 40)])
    assert picks(EVS().select(video(3, 1, 2, features), 2)) == [0, 1]
    assert picks(EVS().select(video(3, 1, 2, features), 3)) == [0, 1, 4]
    assert picks(EVS().select(video(3, 1, 2, features), 4)) == [0, 1, 3, 4]
    still = video(3, 1, 2, torch.ones(6, 2))
    assert picks(EVS().select(still, 4)) == [0, 1, 2, 3]  # the earliest of equals
    assert len(picks(EVS().select(still, 1))) == 1


def test_vidcom2_gives_more_to_the_frame_that_stands_out():
    generator = torch.Generator().manual_seed(0)
    usual = torch.randn(1, 8, generator=generator)
    frames = usual + 0.01 * torch.randn(40, 8, generator=generator)
    frames[20:30] += torch.randn(10, 8, generator=generator)
    kept = picks(VidCom2().select(video(4, 2, 5, frames), 12))
    counts = [sum(10 * i <= j < 10 * (i + 1) for j in kept) for i in range(4)]
    assert counts[2] == max(counts) and counts[2] > 12 / 4 and min(counts) > 0


def test_vidcom2_keeps_what_is_least_common_in_a_frame():
    features = torch.eye(4)[[0, 0, 0, 0, 1, 0]]
    assert picks(VidCom2(channels=1.0).select(video(1, 2, 3, features), 1)) == [4]


def test_fastvid_cuts_where_the_picture_changes():
    frames = directions(0, 1, 2, 90, 91, 92)
    assert FastVID(segments=1)._segments(frames) == [(0, 3), (3, 6)]
    assert FastVID(segments=3)._segments(frames) == [(0, 1), (1, 3), (3, 6)]
    assert FastVID(segments=9)._segments(frames) == [(i, i + 1) for i in range(6)]


def test_fastvid_by_hand():
    """One still segment of two frames: an attended token in each, and one anchor that averages the rest."""
    features = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0]])
    tokens = video(2, 1, 2, features, encoder_attention=torch.tensor([5.0, 1, 5, 1]))
    kept = FastVID(segments=1, merged=0.34).select(tokens, 3)
    assert picks(kept) == [0, 1, 2]
    assert torch.allclose(kept.features, torch.tensor([1.0, 0]).expand(3, 2))
    assert FastVID(merged=0).select(tokens, 2).features is None


def test_fastvid_weighs_its_anchor():
    """An anchor with three others: 0.6 of itself, 0.4 of their mean."""
    features = directions(0, 1, 1, 1) * torch.tensor([[1.0], [2], [3], [4]])
    tokens = video(1, 1, 4, features, encoder_attention=torch.ones(4))
    kept = FastVID(merged=1.0).select(tokens, 1)
    (anchor,) = picks(kept)
    others = features[[i for i in range(4) if i != anchor]]
    torch.testing.assert_close(kept.features[0], 0.6 * features[anchor] + 0.4 * others.mean(0))


# ---------------------------------------------------------------- in the decoder


def view(visual, n_keep, attention=None, text=(), layer=2, n_layers=4, **more) -> DecoderView:
    """A row at the border of two layers; `attention` (M, M) is what each place pays in the layer below."""
    return DecoderView(
        visual=[torch.tensor(v) for v in visual],
        n_keep=n_keep,
        text=torch.tensor(text, dtype=torch.int64),
        last=0 if attention is None else len(attention) - 1,
        received=lambda rows: attention[rows].mean(0),
        keys=more.get("keys", torch.empty(0)),
        hidden=lambda: more["hidden"],
        embeds=lambda: more["embeds"],
        layer=layer,
        n_layers=n_layers,
        lowest=1,
        entered=more.get("entered", [len(v) for v in visual]),
    )


def kept_places(answer) -> list[list[int]]:
    return [mask.nonzero()[:, 0].tolist() for mask in answer]


def test_pyramiddrop_follows_its_schedule():
    attention = torch.zeros(6, 6)
    attention[5] = torch.tensor([0.1, 0.4, 0.3, 0.2, 0, 0])
    policy = PyramidDrop(Schedule((0.25, 0.5)))
    assert policy.deep_layers(4, 1) == [1, 2]
    first = policy.deep_select(view([[0, 1, 2, 3]], [1], attention, layer=1))
    assert kept_places(first) == [[1, 2]]
    last = policy.deep_select(view([[1, 2]], [1], attention, layer=2, entered=[4]))
    assert kept_places(last) == [[0]]
    assert policy.deep_select(view([[1]], [1], attention, layer=2, entered=[4])) is None


def test_sparsevlm_listens_to_telling_words():
    """Visual tokens lean to word 2; word 3 would have kept token 1."""
    embeds = torch.tensor([[4.0, 0], [4, 0], [2, 0], [0, 1]])
    attention = torch.tensor([[0.0] * 4, [0.0] * 4, [0.9, 0.1, 0, 0], [0.1, 0.9, 0, 0]])
    one = view([[0, 1]], [1], attention, text=(2, 3), embeds=embeds)
    assert SparseVLM.raters(one).tolist() == [2]
    assert kept_places(SparseVLM(Schedule((0.5,))).deep_select(one)) == [[0]]
    assert SparseVLM.raters(view([[0, 1]], [1], attention)).tolist() == [3]


def test_vtw_lets_all_leave_at_one_layer():
    assert VTW().deep_layers(32, 1) == [16] and VTW(depth=0.1).deep_layers(4, 2) == [2]
    assert kept_places(VTW().deep_select(view([[0, 1], [3]], [1, 1]))) == [[], []]


def test_dart_by_hand():
    """Token 0 has the loudest key; of the rest it is least like 3, and the word is least like 1."""
    keys = torch.tensor([[9.0], [1], [1], [1], [2]])
    hidden = torch.cat([directions(0, 60, 20, 90), directions(110)])
    one = view([[0, 1, 2, 3]], [3], text=(4,), keys=keys, hidden=hidden)
    # 3 is 90 degrees from 0; of 1 and 2, 20 degrees is farther from 110
    assert kept_places(DART(pivots=1).deep_select(one)) == [[0, 2, 3]]
    assert kept_places(DART(pivots=4).deep_select(view([[0, 1, 2, 3]], [1], text=(4,), keys=keys, hidden=hidden))) == [
        [0]
    ]
    assert DART().deep_select(view([[0, 1]], [2], keys=keys, hidden=hidden)) is None


@pytest.mark.parametrize(
    ("policy", "options", "named"),
    [
        (VisionZip, {"contextual": 1}, "contextual=1"),
        (VisPruner, {"important": 2}, "important=2"),
        (VisPruner, {"step": 0}, "step=0"),
        (MMTok, {"text_temperature": 0}, "text_temperature=0"),
        (HoloV, {"parts": 0}, "parts=0"),
        (VidCom2, {"channels": 0}, "channels=0"),
        (VidCom2, {"sharpness": 0}, "sharpness=0"),
        (FastVID, {"merged": 2}, "merged=2"),
        (FastVID, {"every": 0}, "every=0"),
        (Auto, {"asked": 1.5}, "asked=1.5"),
        (Auto, {"words": 0}, "words=0"),
        (Auto, {"diverse": 0.0}, "diverse=0.0"),
        (Auto, {"length": -1}, "length=-1"),
        (Auto, {"depths": (0.5, 1.0)}, r"depths=\(0.5, 1.0\)"),
        (DART, {"pivots": 0}, "pivots=0"),
        (VTW, {"depth": 1.0}, "depth=1.0"),
    ],
)
def test_bad_options_are_named(policy, options, named):
    with pytest.raises(ValueError, match=named):
        policy(**options)
