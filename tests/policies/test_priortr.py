"""PriorTR: what the question adds to attention, by hand."""

import torch

from tokenprune.policies import PriorTR

from .inputs import decoder_view, kept_places

P, Q = [0.1, 0.2, 0.3, 0.4], [0.05, 0.1, 0.45, 0.4]


def attention() -> torch.Tensor:
    """Columns: start, four visual tokens, a line break, two words."""
    rows = torch.zeros(8, 8)
    rows[5, 1:5], rows[7, 1:5] = 0.5 * torch.tensor(Q), 0.25 * torch.tensor(P)  # each scaled to sum to 1
    rows[6, 1:5] = torch.tensor([0.0, 0.0, 0.0, 2.0])
    return rows


def kept(policy, k, **more):
    (places,) = kept_places(policy.decoder_select(decoder_view([[1, 2, 3, 4]], [k], attention(), **more)))
    return places


def test_priortr_keeps_what_the_question_adds():
    """P log(P / Q) is 0.069, 0.139, -0.122, 0.0; by attention alone the last two would stay."""
    text = (5, 6, 7)
    assert [kept(PriorTR(), k, text=text) for k in (1, 2, 3)] == [[1], [0, 1], [0, 1, 3]]


def test_priortr_averages_the_question():
    """Mean attention of columns 5 to 7, where column 6 looks at the last token alone."""
    p = (0.5 * torch.tensor(Q) + torch.tensor([0.0, 0, 0, 2]) + 0.25 * torch.tensor(P)) / 3
    p = p / p.sum()
    gain = p * (p / torch.tensor(Q)).log()
    assert kept(PriorTR(query="question"), 1, text=(5, 6, 7)) == [int(gain.argmax())] == [3]


def test_priortr_ranks_by_attention_where_nothing_stands_before_the_question():
    assert kept(PriorTR(), 2, text=(7,)) == [2, 3]
    assert kept(PriorTR(), 2, text=()) == [2, 3]


def test_priortr_scores_each_picture_by_the_text_after_it():
    """Columns: two visual tokens, a line break, two visual tokens, a line break, a word."""
    rows = torch.zeros(7, 7)
    rows[2, :2] = torch.tensor([0.5, 0.5])
    rows[5, 3:5] = torch.tensor([0.1, 0.9])
    rows[6, [0, 1, 3, 4]] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    view = decoder_view([[0, 1], [3, 4]], [1, 1], rows, text=(2, 5, 6))
    assert kept_places(PriorTR().decoder_select(view)) == [[1], [0]]
    assert PriorTR().decoder_select(decoder_view([[0, 1], [3, 4]], [2, 2], rows, text=(2, 5, 6))) is None
