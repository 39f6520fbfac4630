"""SIEVE: residuals against the text, by hand, and attention by head."""

from dataclasses import dataclass, replace

import torch

from tokenprune import DecoderView, pruning
from tokenprune.policies import FastV, Sieve

from ..families import even_batch, get_model, text_of
from .inputs import decoder_view, kept_places

# Two words along x, around their mean. Of the visual tokens, around theirs, two lie along x and two along y.
HIDDEN = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [2, 0, 1], [0, 0, 1]])
WEIGHT = torch.tensor([0.4, 0.1, 0.3, 0.2])


def view(k, attention=None, **more) -> DecoderView:
    rows = torch.zeros(6, 6)
    rows[4:, :4] = WEIGHT
    return decoder_view([[0, 1, 2, 3]], [k], rows if attention is None else attention, text=(4, 5), hidden=HIDDEN)


def test_a_residual_is_what_the_text_does_not_span():
    """The text's one singular value is the square root of 2, so lambda is 2, and half of x is left: 2 / (2 + 2)."""
    text = HIDDEN[4:] - HIDDEN[4:].mean(0)
    residual = Sieve().residual(HIDDEN[:4], text)
    torch.testing.assert_close(residual, HIDDEN[:4] * torch.tensor([[0.5], [0.5], [1], [1]]), atol=1e-5, rtol=0)
    assert Sieve().residual(HIDDEN[:4], HIDDEN[:0]) is not None


def test_the_energy_chooses_the_singular_value():
    """Energies 4, 2 and 1 along three axes: 0.57 after the first, 0.86 after the second."""
    text = torch.diag(torch.tensor([2.0, 2**0.5, 1.0]))
    for energy, ridge in ((0.5, 4.0), (0.75, 2.0), (0.9, 1.0), (1.0, 1.0)):
        residual = Sieve(energy=energy).residual(torch.eye(3), text).diagonal()
        torch.testing.assert_close(residual, ridge / (torch.tensor([4.0, 2, 1]) + ridge), atol=1e-4, rtol=0)


def test_sieve_by_hand():
    """Scores are 0.04, 0.0025, 0.09 and 0.04. What is opposite to a pick says nothing new: its score becomes 0."""
    assert [kept_places(Sieve().decoder_select(view(k))) for k in (1, 2, 3)] == [[[2]], [[0, 2]], [[0, 1, 2]]]
    assert Sieve().decoder_select(view(4)) is None


def test_sieve_reads_the_heads_that_look_at_the_picture():
    by_head = torch.zeros(3, 6)
    by_head[0, :4], by_head[1, :4] = 0.1, torch.tensor([0.1, 0.9, 0.1, 0.1])
    seen = replace(view(1), received_by_head=lambda rows: by_head)
    torch.testing.assert_close(Sieve(heads=1).attention(seen), by_head[1])
    torch.testing.assert_close(Sieve(heads=2).attention(seen), by_head[:2].mean(0))
    torch.testing.assert_close(Sieve(heads=12).attention(seen), by_head.mean(0))
    assert kept_places(Sieve(heads=1).decoder_select(seen)) == [[1]]


@dataclass
class Look(FastV):
    """Keeps the attention by head of the last two columns."""

    def decoder_select(self, view):
        rows = torch.tensor([view.last - 1, view.last])
        self.seen = view.received_by_head(rows), view.received(rows)
        return super().decoder_select(view)


def test_attention_by_head_is_that_of_the_model():
    model, inputs = get_model("llava"), {name: value[:1] for name, value in even_batch().inputs.items()}
    policy, text = Look(), text_of(model)
    before = text.config._attn_implementation
    text.set_attn_implementation("eager")
    try:
        with torch.no_grad(), pruning(model, policy, 0.5, budget="final"):
            model(**inputs)
        with torch.no_grad():
            weights = model(**inputs, output_attentions=True).attentions[1][0, :, -2:].mean(1)
    finally:
        text.set_attn_implementation(before)
    by_head, received = policy.seen
    torch.testing.assert_close(by_head, weights.to(by_head), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(by_head.mean(0), received)
