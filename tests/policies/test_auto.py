"""Auto: question first, then what is farthest, then evenly spaced; and again in the decoder."""

import functools

import torch
import torch.nn.functional as F

from tokenprune import VisualTokens
from tokenprune.ops import max_min_select
from tokenprune.policies import Auto

from .inputs import decoder_view, directions, kept_places, picks


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
    seen = functools.partial(decoder_view, [list(range(10))], layer=2, hidden=features)
    assert kept_places(auto.decoder_follow_up().decoder_select(seen([5]))) == [chosen_and_spaced]
    # of twenty that entered four may be chosen: two that stand out, and the first of equals
    assert kept_places(auto.decoder_follow_up().decoder_select(seen([4], entered=[20]))) == [[0, 1, 3, 8]]


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
    deeper = Auto(depths=(0.25, 0.5), diverse=1).decoder_follow_up()
    assert deeper.decoder_layers(32, 3) == [8, 16] and deeper.decoder_layers(4, 3) == [3]
    seen = functools.partial(decoder_view, [[1, 2, 3, 4], [5, 6]], layer=2, hidden=hidden)
    assert kept_places(deeper.decoder_select(seen([2, 2]))) == [[0, 3], [0, 1]]
    assert kept_places(deeper.decoder_select(seen([3, 1]))) == [[0, 2, 3], [0]]
    # at the first cut half of the way: of four that shall be one, two
    assert kept_places(deeper.decoder_select(seen([1, 2], layer=1))) == [[0, 3], [0, 1]]
    assert kept_places(deeper.decoder_select(seen([4, 2]))) == [[0, 1, 2, 3], [0, 1]]
    assert Auto(depths=()).decoder_follow_up() is None
