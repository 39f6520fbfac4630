"""ERASE: entropy of pixels, and how many tokens it keeps without a budget."""

import math

import pytest
import torch

from tokenprune import VisualTokens, pruning, pruning_report
from tokenprune.patches.patch_entropy import patch_entropies
from tokenprune.policies import Erase

from ..families import even_batch, get_model
from ..oracles import generate
from .inputs import picks, picture

ENTROPY = torch.tensor([0.1, 0.5, 0.3, 0.4, 0.2])


def tokens(entropy=ENTROPY):
    return VisualTokens(torch.randn(len(entropy), 4), patch_entropy=entropy)


def test_erase_keeps_the_largest_entropy():
    assert [picks(Erase().select(tokens(), k)) for k in (1, 2, 3)] == [[1], [1, 3], [1, 2, 3]]


@pytest.mark.parametrize(
    ("median", "share"), [(0.0, 0.1), (0.3, 0.45), (0.6, 0.8), (0.9, 0.8)], ids=["blank", "half", "busy", "busier"]
)
def test_without_a_budget_the_median_decides(median, share):
    assert len(Erase().select(tokens(torch.full((20,), median)), None).indices) == round(share * 20)
    assert len(Erase(busy=1.0).select(tokens(torch.ones(20)), None).indices) == 16


def test_without_pixels_a_token_counts_that_is_unlike_the_mean():
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0.1]])
    assert picks(Erase().select(VisualTokens(features), 1)) == [2]
    assert len(picks(Erase().select(picture(3, 3), None))) >= 1


def test_least_is_at_most_most():
    with pytest.raises(ValueError, match=r"^least=0.9 must be at most most=0.5"):
        Erase(least=0.9, most=0.5)


def noisy(pixels, rows):
    """Zero pixels, but for half of the tokens in `rows`, which hold both of two colours."""
    out = torch.zeros_like(pixels)
    out[rows] = torch.arange(pixels[0].numel()).remainder(2).float().view_as(pixels[0])
    return out


def test_entropy_of_patches_that_stand_in_the_order_of_tokens():
    base = get_model("qwen2_5_vl").model
    patches = torch.zeros(24, 3 * 2 * 14 * 14)  # two pictures of 2 and 4 tokens of four patches each
    patches = noisy(patches, slice(4, 8))  # all of token 1 of the first
    patches[12:14] = patches[4:6]  # half of token 1 of the second
    first, second = patch_entropies(base, "image", [2, 4], {"pixel_values": patches})
    one_bit = math.log(2) / math.log(32)
    torch.testing.assert_close(first, torch.tensor([0, one_bit]))
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(32)
    torch.testing.assert_close(second, torch.tensor([0, quarter, 0, 0]))
    assert patch_entropies(base, "image", [5], {"pixel_values": patches}) is None


def test_entropy_of_square_pictures():
    base = get_model("llava").model
    pixels = torch.zeros(2, 3, 8, 8)
    pixels[1, :, 4:, :4] = noisy(torch.zeros(1, 3, 4, 4), slice(0, 1))[0]
    first, second = patch_entropies(base, "image", [4, 4], {"pixel_values": pixels})
    assert first.tolist() == [0, 0, 0, 0]
    assert second[2] > 0.1
    assert second[[0, 1, 3]].tolist() == [0, 0, 0]
    assert patch_entropies(base, "image", [4], {"pixel_values": pixels}) is None
    assert patch_entropies(base, "image", [4, 4], {"pixel_values": pixels[None]}) is None


def test_erase_sees_the_pixels_of_a_model():
    """A picture with one busy patch: it stays, and others are as many as the median asks for."""
    model, batch = get_model("llava"), even_batch()
    inputs = {name: value[:1] for name, value in batch.inputs.items()}
    pixels = torch.zeros_like(inputs["pixel_values"])
    side = pixels.shape[-1] // math.isqrt(len(batch.visuals[0][1]))
    pixels[..., -side:, -side:] = torch.rand(side, side)
    with pruning(model, "erase", 1):
        generate(model, {**inputs, "pixel_values": pixels}, steps=1)
        (record,) = pruning_report(model)
    assert record.indices == [record.n_before - 1]
    with pruning(model, "erase"):
        generate(model, {**inputs, "pixel_values": pixels}, steps=1)
        (record,) = pruning_report(model)
    assert record.n_after == round(0.1 * record.n_before)
