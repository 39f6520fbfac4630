"""What the library gives to any policy, and what it does with the answer."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune import Policy, Selection, VisualTokens, apply_pruning, pruning, remove_pruning
from tokenprune.policies import (
    EADP,
    EVS,
    Auto,
    CDPruner,
    DivPrune,
    FastVID,
    Grid,
    HoloV,
    MMTok,
    PruMerge,
    PruMergePlus,
    Random,
    Scope,
    VidCom2,
    VisionZip,
    VisPruner,
)

from ..families import get_model, ragged_batch, text_of
from ..oracles import generate
from .inputs import picture, select


def test_video_budget_is_spread_over_frames():
    tokens = picture(4, 4, t=3, kind="video")
    for policy in (Random(), Grid()):
        indices = select(policy, tokens, 10).indices
        assert torch.bincount(indices // 16).tolist() == [3, 3, 4]
    few = select(Random(), tokens, 2).indices // 16
    assert len(few.unique()) == 2
    # DivPrune sees the whole video: of three equal frames two bring nothing new
    frame = torch.randn(16, 8)
    still = VisualTokens(torch.cat([frame] * 3), grids=((3, 4, 4),), kind="video")
    assert len((select(DivPrune(), still, 16).indices % 16).unique()) == 16


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
    for policy in (
        VisionZip(),
        PruMerge(),
        PruMergePlus(),
        VisPruner(step=3),
        CDPruner(),
        HoloV(surplus="shared"),
        Scope(),
        MMTok(),
    ):
        policy.select(tokens, k).check(n, k, repr(policy))
    for policy in (Auto(), EADP(), EVS(), VidCom2(), FastVID(every=2), FastVID(merged=1.0, segments=1)):
        policy.select(tokens, k).check(n, k, repr(policy))


@pytest.mark.parametrize(
    ("indices", "match"),
    [
        (torch.tensor([0, 1]), "kept 2 of 16"),
        (torch.tensor([0, 2, 1]), "ascending"),
        (torch.tensor([0, 1, 1]), "ascending"),
        (torch.tensor([-1, 0, 1]), r"\[0, 16\)"),
        (torch.tensor([1, 2, 16]), r"\[0, 16\)"),
        (torch.tensor([0.0, 1.0, 2.0]), "int64"),
        ([0, 1, 2], "int64"),
    ],
)
def test_bad_answers_of_a_policy_are_errors(indices, match):
    @dataclass
    class Bad(Policy):
        def select(self, tokens, n_keep):
            return Selection(indices)

    with pytest.raises(ValueError, match=match):
        select(Bad(), picture(4, 4), 3)


def test_what_a_policy_needs_is_given_or_refused():
    seen = []

    @dataclass
    class Reader(Policy):
        needs = frozenset({"text"})

        def select(self, tokens, n_keep):
            seen.append(tokens.text)
            return Selection(torch.arange(n_keep))

    model, batch = get_model("llava"), ragged_batch("llava")
    with pruning(model, Reader(), 0.5):
        generate(model, batch.inputs, steps=1)
    ids = batch.inputs["input_ids"][0]
    words = ids[(ids != 90) & batch.inputs["attention_mask"][0].bool()]
    assert torch.equal(seen[0], model.get_input_embeddings()(words))

    @dataclass
    class Greedy(Policy):
        needs = frozenset({"telepathy"})

        def select(self, tokens, n_keep):
            return Selection(torch.arange(n_keep))

    with pytest.raises(ValueError, match="telepathy"):
        apply_pruning(model, Greedy())


def test_features_that_replace_the_kept_ones():
    @dataclass
    class Mean(Policy):
        def select(self, tokens, n_keep):
            return Selection(torch.arange(n_keep), tokens.features.mean(0).expand(n_keep, -1))

    model, batch, seen = get_model("llava"), ragged_batch("llava"), []
    with pruning(model, Mean(), 2):
        handle = text_of(model).register_forward_pre_hook(
            lambda m, a, k: seen.append(k["inputs_embeds"]), with_kwargs=True
        )
        generate(model, batch.inputs, steps=1)
        handle.remove()
    with torch.no_grad():
        features = model.model.get_image_features(batch.inputs["pixel_values"])
    third = list(getattr(features, "pooler_output", features))[3]
    row = seen[0][2]  # the longest row has no padding: <s>, 23 words, then what is left of the image
    torch.testing.assert_close(row[24:26], third.mean(0).expand(2, -1))


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_an_error_in_a_policy_leaves_the_model_usable(family):
    @dataclass
    class Broken(Policy):
        def select(self, tokens, n_keep):
            raise ZeroDivisionError("in the policy")

    model, batch = get_model(family), ragged_batch(family)
    before = generate(model, batch.inputs)
    apply_pruning(model, Broken(), 0.5)
    with pytest.raises(ZeroDivisionError, match="in the policy"):
        generate(model, batch.inputs)
    # text goes on, unpruned, with the hooks still there; nothing of the failed call is left over
    text = dict(input_ids=torch.full((2, 5), 7), attention_mask=torch.ones(2, 5, dtype=torch.long))
    during = generate(model, text)
    remove_pruning(model)
    assert torch.equal(generate(model, text).logits, during.logits)
    assert torch.equal(generate(model, batch.inputs).logits, before.logits)
