"""What a policy of somebody else's may answer wrongly: one clear error that names it, and the model as it was."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tokenprune import Policy, Selection, apply_pruning, pruning, remove_pruning
from tokenprune.policies.run import run_policy
from tokenprune.policies.types import TowerCut, VisualTokens

from ..families import Picture, get_model, make_batch
from ..oracles import generate

WIDTH = 32


@dataclass
class Theirs(Policy):
    """Answers as it is told to."""

    answer: Any = None

    def select(self, tokens, n_keep):
        return self.answer(tokens, n_keep)


@dataclass
class TheirsForAll(Policy):
    answer: Any = None

    def select_many(self, tokens, n_keep):
        return self.answer


@dataclass
class TheirsInTheDecoder(Policy):
    answer: Any = None
    layers: Any = (1,)
    stage = "decoder"

    def decoder_layers(self, n_layers, lowest):
        return list(self.layers) if isinstance(self.layers, tuple) else self.layers

    def decoder_select(self, view):
        return self.answer(view)


@dataclass
class TheirsInTheTower(Policy):
    answer: Any = None
    stage = "encoder"

    def encoder_select(self, view):
        return self.answer(view)


def batch():
    p = Picture((24, 24))
    return make_batch("llava", [[3, p, 4], [2, p, 2, p, 5]], 1)


def ones(*shape, **options):
    return torch.ones(*shape, **{"dtype": torch.float64, **options})


SELECTIONS = {
    "nothing": (lambda t, k: None, "Selection for each input, got None"),
    "a list": (lambda t, k: list(range(k)), "Selection for each input, got a list of 9"),
    "a tensor": (lambda t, k: torch.arange(k), "Selection for each input, got a torch.int64 tensor"),
    "not ascending": (lambda t, k: Selection(torch.arange(k).flip(0)), "ascending, distinct indices"),
    "one twice": (lambda t, k: Selection(torch.zeros(k, dtype=torch.long)), "ascending, distinct indices"),
    "out of range": (lambda t, k: Selection(torch.arange(k) + len(t) - k + 1), r"in \[0, 36\)"),
    "negative": (lambda t, k: Selection(torch.arange(k) - 1), r"in \[0, 36\)"),
    "too few": (lambda t, k: Selection(torch.arange(k - 1)), "kept 8 of 36 visual tokens, asked for 9"),
    "too many": (lambda t, k: Selection(torch.arange(k + 1)), "kept 10 of 36 visual tokens, asked for 9"),
    "none": (lambda t, k: Selection(torch.arange(0)), "kept 0 of 36"),
    "int32": (lambda t, k: Selection(torch.arange(k, dtype=torch.int32)), "1-D int64 indices"),
    "a mask": (lambda t, k: Selection(torch.arange(len(t)) < k), "1-D int64 indices"),
    "two dimensions": (lambda t, k: Selection(torch.arange(k)[None]), "1-D int64 indices"),
    "floats": (lambda t, k: Selection(torch.arange(k).double()), "1-D int64 indices"),
    "no data": (lambda t, k: Selection(torch.arange(k, device="meta")), "1-D int64 indices"),
    "NaN": (lambda t, k: Selection(torch.arange(k), ones(k, WIDTH) * torch.nan), "not finite"),
    "inf": (lambda t, k: Selection(torch.arange(k), ones(k, WIDTH) * torch.inf), "not finite"),
    "features that broadcast": (lambda t, k: Selection(torch.arange(k), ones(k, 1)), r"shape \(9, 32\), got \(9, 1\)"),
    "flat features": (lambda t, k: Selection(torch.arange(k), ones(k)), r"shape \(9, 32\), got \(9,\)"),
    "wide features": (lambda t, k: Selection(torch.arange(k), ones(k, WIDTH + 1)), r"shape \(9, 32\)"),
    "few features": (lambda t, k: Selection(torch.arange(k), ones(k - 1, WIDTH)), r"shape \(9, 32\)"),
    "integers": (lambda t, k: Selection(torch.arange(k), ones(k, WIDTH).long()), "floating-point"),
    "complex": (lambda t, k: Selection(torch.arange(k), ones(k, WIDTH) * 1j), "floating-point"),
    "features without data": (lambda t, k: Selection(torch.arange(k), ones(k, WIDTH, device="meta")), "with data"),
    "an array": (lambda t, k: Selection(torch.arange(k), np.ones((k, WIDTH))), "floating-point.*ndarray"),
    "in place": (lambda t, k: (t.features.zero_(), Selection(torch.arange(k)))[1], "in place"),
}

MASKS = {
    "no masks": (lambda v: [], "bool mask for each of 1 visual inputs"),
    "one mask": (lambda v: torch.ones(36, dtype=torch.bool), "bool mask for each"),
    "too long": (lambda v: [torch.ones(len(x) + 1, dtype=torch.bool) for x in v.visual], r"shape \(36,\)"),
    "one that broadcasts": (lambda v: [torch.zeros(1, dtype=torch.bool) for _ in v.visual], r"shape \(36,\)"),
    "indices": (lambda v: [torch.arange(len(x)) for x in v.visual], "bool masks"),
    "floats": (lambda v: [torch.full((len(x),), float("nan")) for x in v.visual], "bool masks"),
    "lists": (lambda v: [[True] * len(x) for x in v.visual], "got a list of 36"),
    "two dimensions": (lambda v: [torch.ones(1, len(x), dtype=torch.bool) for x in v.visual], r"shape \(36,\)"),
    "no data": (lambda v: [torch.ones(len(x), dtype=torch.bool, device="meta") for x in v.visual], "without data"),
}


def rows(view, indices):
    return TowerCut(indices.expand(len(view.hidden), -1))


CUTS = {
    "a list": (lambda v: [1, 2], "TowerCut or None"),
    "one row": (lambda v: TowerCut(torch.arange(v.n_keep + 1)), r"int64 indices of shape \(3, K\)"),
    "not ascending": (lambda v: rows(v, torch.arange(v.n_keep + 1).flip(0)), "ascending, distinct"),
    "without CLS": (lambda v: rows(v, torch.arange(1, v.n_keep + 2)), "CLS token first"),
    "out of range": (lambda v: rows(v, torch.arange(v.n_keep + 1) + 100), "within range"),
    "one twice": (lambda v: rows(v, torch.zeros(v.n_keep + 1, dtype=torch.long)), "distinct"),
    "too many": (lambda v: rows(v, torch.arange(100)), "kept 100 of 37"),
    "NaN": (
        lambda v: TowerCut(rows(v, torch.arange(v.n_keep + 1)).keep, ones(len(v.hidden), v.n_keep + 1, 16) * torch.nan),
        "finite hidden states",
    ),
    "narrow": (
        lambda v: TowerCut(rows(v, torch.arange(v.n_keep + 1)).keep, ones(len(v.hidden), v.n_keep + 1, 1)),
        r"hidden of shape \(3, 10, 16\)",
    ),
}


def refused(policy, message, name):
    """The error names the policy and the rule, and the model is what it was."""
    model, inputs = get_model("llava"), batch().inputs
    expected = generate(model, inputs, steps=2)
    apply_pruning(model, policy, 0.25, budget="final")
    try:
        with pytest.raises(ValueError, match=f"(?s)policy '{name}'.*{message}"):
            generate(model, inputs, steps=2)
    finally:
        remove_pruning(model)
    assert torch.equal(generate(model, inputs, steps=2).logits, expected.logits)


@pytest.mark.parametrize("what", SELECTIONS)
def test_selections(what):
    answer, message = SELECTIONS[what]
    refused(Theirs(answer), message, "Theirs")


@pytest.mark.parametrize("answer", [None, [], [None] * 3, [Selection(torch.arange(9))] * 2])
def test_answers_for_all_inputs(answer):
    refused(
        TheirsForAll(answer), "list of 3 Selections" if not answer or len(answer) == 2 else "Selection", "TheirsForAll"
    )


@pytest.mark.parametrize("what", MASKS)
def test_masks_of_the_decoder_stage(what):
    answer, message = MASKS[what]
    refused(TheirsInTheDecoder(answer), message, "TheirsInTheDecoder")


@pytest.mark.parametrize("what", CUTS)
def test_cuts_in_the_vision_tower(what):
    answer, message = CUTS[what]
    refused(TheirsInTheTower(lambda view: answer(view) if view.cut == 0 else None), message, "TheirsInTheTower")


def test_other_float_types_are_taken_as_they_are():
    model = get_model("llava")
    with pruning(model, Theirs(lambda t, k: Selection(torch.arange(k), ones(k, WIDTH, dtype=torch.float32))), 0.25):
        assert generate(model, batch().inputs, steps=2).logits.isfinite().all()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "one decoder layer or more"),
        ((2, 1), "ascending"),
        ((1, 1), "ascending"),
        ((0,), "layer 0; this model accepts 1 to 2"),
        ((3,), "layer 3; this model accepts 1 to 2"),
        ((1.0,), "list of int"),
        ((True,), "list of int"),
        (None, "list of int"),
        ("1", "list of int"),
    ],
)
def test_decoder_layers_are_checked_beforehand(layers, message):
    with pytest.raises(ValueError, match=message):
        apply_pruning(get_model("llava"), TheirsInTheDecoder(lambda view: None, layers), 0.25)


def test_policies_that_cannot_act_are_refused_beforehand():
    class Nothing(Policy):
        pass

    class Nowhere(Policy):
        stage = "nowhere"

    class Twice(Policy):
        stage = "vision, vision"

    class InTheDecoder(Policy):
        stage = "decoder"

    class InTheTower(Policy):
        stage = "encoder"

    for policy, message in (
        (Nothing(), r"'Nothing' acts at the vision stage and must define select\(\)"),
        (Nowhere(), "'Nowhere' has the unknown stage 'nowhere'; accepted: 'pixels', 'encoder', 'vision', 'decoder'"),
        (Twice(), "unknown stage 'vision, vision'"),
        (InTheDecoder(), r"must define decoder_select\(\)"),
        (InTheTower(), r"must define encoder_select\(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            apply_pruning(get_model("llava"), policy, 0.25)


def test_features_of_frames_stand_at_their_own_tokens():
    """Frames that stay whole, and those whose features a policy does not replace, keep their own."""

    @dataclass
    class Sometimes(Policy):
        def select(self, tokens, n_keep):
            indices = torch.arange(len(tokens) - n_keep, len(tokens))
            return Selection(indices, -tokens.features[indices] if tokens.index == 0 else None)

    features = torch.arange(101.0, 113.0)[:, None].expand(12, 4)
    video = VisualTokens(features, grids=((3, 2, 2),), kind="video")
    (chosen,) = run_policy(Sometimes(), [video], [10])
    assert chosen.indices.tolist() == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    signs = torch.tensor([-1] * 3 + [1] * 7)
    assert torch.equal(chosen.features[:, 0], signs * features[chosen.indices, 0])
