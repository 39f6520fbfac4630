"""Auto: a diverse set that prefers what the question names, then evenly spaced; and again late in the decoder."""

import functools

import pytest
import torch
import torch.nn.functional as F

from tokenprune import VisualTokens
from tokenprune.ops import dpp_select
from tokenprune.policies import Auto

from .inputs import decoder_view, directions, kept_places, picks


def test_the_quality_is_that_of_the_clearest_words():
    """The first word is like tokens 4 and 5 alone, the second a little like all."""
    features = F.normalize(torch.eye(6)[[0, 0, 1, 2, 3, 3]] + 0.05, dim=-1)
    question = torch.stack([torch.eye(6)[3], torch.ones(6)])
    quality = Auto(words=1).quality(VisualTokens(features, question=question))
    z = torch.tensor([-(0.5**0.5)] * 4 + [2**0.5] * 2)  # standardised: a third of the tokens stands out
    torch.testing.assert_close(quality, torch.exp(0.1 * (z - 2**0.5)), atol=1e-3, rtol=0)
    both = Auto(words=2).quality(VisualTokens(features, question=question))
    assert not torch.allclose(both, quality, atol=1e-3)
    for options, text in (({"asked": 0}, question), ({}, None), ({}, question[:0])):
        assert Auto(**options).quality(VisualTokens(features, question=text)).tolist() == [1.0] * 6


def test_what_is_named_decides_among_equals():
    """Four directions of equal distance, and places for two: those that the word resembles."""
    features = torch.eye(5)[:4]
    question = torch.tensor([[0.0, 0.2, 0.0, 1.0, 0.5]])
    assert picks(Auto(diverse=1).select(VisualTokens(features, question=question), 2)) == [1, 3]
    assert Auto(diverse=1).select(VisualTokens(features), 2).indices.tolist() == [0, 1]


def test_diversity_is_not_given_up_for_what_is_named():
    """Two tokens are exactly what the word says, a third is not: one of the two stays, and the third."""
    tokens = VisualTokens(directions(0, 0, 90), question=directions(0))
    assert picks(Auto(diverse=1).select(tokens, 2)) == [0, 2]
    assert picks(Auto(asked=0, diverse=1).select(tokens, 2)) == [0, 2]


def test_lengths_count_if_they_are_asked_for():
    features = directions(0, 10, 90) * torch.tensor([[1.0], [4.0], [2.0]])
    quality = Auto(asked=0, length=0.5).quality(VisualTokens(features))
    torch.testing.assert_close(quality, torch.tensor([1.0, 4.0, 2.0]).sqrt() / 2)
    assert picks(Auto(asked=0, length=0.5, diverse=1).select(VisualTokens(features), 1)) == [1]


def test_qualities_that_differ_widely_stay_finite():
    """One of many tokens is named, with the greatest weight."""
    features = directions(*[90.0] * 4000, 0.0)
    quality = Auto(asked=1).quality(VisualTokens(features, question=directions(0)))
    assert quality[-1] == 1 and 0 < quality[0] < 1e-8
    # a standard deviation that is rounding makes nothing stand out
    alike = torch.full((9, 4), 0.1) + 1e-8 * torch.arange(9.0)[:, None]
    equal = Auto().quality(VisualTokens(alike, question=torch.randn(3, 4)))
    torch.testing.assert_close(equal, torch.ones(9), atol=0.01, rtol=0)


def test_auto_spaces_what_is_beyond_its_share():
    """Two of ten tokens may be chosen, those that differ; three more are spaced among eight alike."""
    features = directions(0, 0, 0, 90, 0, 0, 0, 0, 0, 0)
    auto = Auto(diverse=0.2)
    assert picks(auto.select(VisualTokens(features), 2)) == [0, 3]
    assert picks(auto.select(VisualTokens(features), 5)) == [0, 2, 3, 6, 8]
    assert picks(Auto(diverse=0.01).select(VisualTokens(features), 1)) == [0]  # one at least


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
    """Two pictures, then text; of the first, tokens 0, 1 and 2 have become the same, token 3 lies across."""
    hidden = directions(45, 0, 0, 0, 90, 0, 90, 180, 0)
    attention = torch.zeros(9, 9)
    attention[8, 2], attention[8, 6] = 0.5, 0.4
    later = Auto(depths=(0.25, 0.5)).decoder_follow_up()
    assert later.decoder_layers(32, 3) == [8, 16] and later.decoder_layers(4, 3) == [3]
    seen = functools.partial(
        decoder_view, [[1, 2, 3, 4], [5, 6, 7]], attention=attention, text=(8,), layer=2, hidden=hidden
    )
    assert kept_places(later.decoder_select(seen([2, 1]))) == [[1, 3], [1]]
    assert kept_places(later.decoder_select(seen([1, 3]))) == [[1], [0, 1, 2]]
    # at the first cut half of the way: of four that shall be one, two
    assert kept_places(later.decoder_select(seen([1, 3], layer=1))) == [[1, 3], [0, 1, 2]]
    # without text or weight diversity alone
    for policy, text in ((later, ()), (Auto(depths=(0.5,), attention=0).decoder_follow_up(), (8,))):
        view = decoder_view([[1, 2, 3, 4]], [1], attention=attention, text=text, layer=2, hidden=hidden)
        assert kept_places(policy.decoder_select(view)) == [
            dpp_select(hidden[None, 1:5], torch.ones(1, 4), 1)[0].tolist()
        ]
    assert Auto(depths=()).decoder_follow_up() is None


def test_what_stays_to_the_end():
    later = Auto().decoder_follow_up()
    assert later.decoder_layers(4, 1) == [3] and later.decoder_layers(32, 1) == [24]
    assert [later.decoder_entry(share, 0.5) for share in (0.02, 0.1, 0.2, 0.4)] == pytest.approx([0.02, 0.1, 0.5, 1.0])
    assert Auto(least=0.0).decoder_follow_up().decoder_entry(0.1, 0.5) == pytest.approx(0.4)
