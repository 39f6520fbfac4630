"""PixelPrune: by the rule of the paper, block by block."""

import pytest
import torch

from tokenprune import VisualTokens
from tokenprune.policies import PixelPrune
from tokenprune.policies.run import run_policy

SHAPE = (4, 3, 2, 16)  # patches of a token, channels, frames, pixels of a patch


def page(height: int, width: int) -> torch.Tensor:
    """Blocks of a page: white, with lines of text, a filled box and a vertical rule."""
    blocks = torch.ones(height, width, 4 * 3 * 2 * 16)
    for row in range(1, height, 3):
        blocks[row, 1 : width - 2] = torch.rand(width - 3, blocks.shape[2])
    blocks[height // 2 :, 2:5] = 0.25
    blocks[:, -1] = 0.5
    return blocks


def photograph(height: int, width: int) -> torch.Tensor:
    """Smooth gradients with a little noise, in steps of 1 / 32, so that some neighbours are equal."""
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    smooth = (rows.sin() + columns.cos())[..., None] + 0.02 * torch.rand(height, width, 4 * 3 * 2 * 16)
    return (smooth * 32).round() / 32


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randn(height, width, 4 * 3 * 2 * 16)


def by_hand(blocks: torch.Tensor, tau: float) -> list[int]:
    """What the rule keeps, one block after another."""
    height, width, _ = blocks.shape
    known, kept = blocks.clone(), []

    def alike(a, b):
        return float((a - b).abs().max()) <= tau

    for row in range(height):
        for column in range(width):
            if row == column == 0:
                kept.append(0)
                continue
            left, above, corner = known[row, column - 1], known[row - 1, column], known[row - 1, column - 1]
            if row == 0:
                prediction = left
            elif column == 0:
                prediction = above
            else:
                prediction = above if alike(corner, left) and not alike(corner, above) else left
            if alike(blocks[row, column], prediction):
                known[row, column] = prediction
            else:
                kept.append(row * width + column)
    return kept


def selected(blocks: torch.Tensor, policy: PixelPrune, n_keep: int | None = None) -> list[int]:
    height, width, _ = blocks.shape
    tokens = VisualTokens(blocks.flatten(0, 1), ((1, height, width),), pixel_shape=SHAPE)
    return policy.select(tokens, n_keep).indices.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("draw", [page, photograph, noise])
def test_exact(draw, dtype):
    torch.manual_seed(0)
    for shape in ((9, 12), (1, 7), (7, 1), (1, 1), (2, 2)):
        blocks = draw(*shape).to(dtype) if min(shape) > 4 else (noise(*shape) > 0).to(dtype)[..., :1].repeat(1, 1, 384)
        assert selected(blocks, PixelPrune()) == by_hand(blocks, 0.0)


@pytest.mark.parametrize("tau", [0.01, 0.03, 0.07, 3.0])
@pytest.mark.parametrize("draw", [page, photograph, noise])
def test_a_tolerance_compares_with_what_was_predicted(draw, tau):
    torch.manual_seed(1)
    for shape in ((9, 12), (12, 5)):
        blocks = draw(*shape)
        assert selected(blocks, PixelPrune(tau=tau)) == by_hand(blocks, tau)
    if draw is photograph and tau == 0.07:  # errors do not add up along a row: some of a slow gradient have to stay
        assert 1 < len(selected(blocks, PixelPrune(tau=tau))) < blocks[..., 0].numel()


def test_flat_areas_leave_and_noise_stays():
    torch.manual_seed(0)
    assert len(selected(page(30, 40), PixelPrune())) < 0.4 * 1200
    assert selected(noise(8, 9), PixelPrune()) == list(range(72))
    assert selected(torch.ones(8, 9, 384), PixelPrune()) == [0]
    zeros = torch.zeros(2, 2, 384)
    zeros[1] = -0.0
    assert selected(zeros, PixelPrune()) == [0]


def test_one_value_of_a_block_makes_a_difference():
    for place in (0, 1, 200, 383):
        for value in (1e-30, 1.0, -(2.0**-20)):
            blocks = torch.zeros(3, 3, 384)
            blocks[1, 1, place] = value
            assert selected(blocks, PixelPrune()) == by_hand(blocks, 0.0) == [0, 4, 5, 7]


@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_a_budget_takes_what_is_predicted_worst(tau):
    blocks = torch.zeros(3, 4, 384)
    blocks[0, 2, 5], blocks[1, 1, 7], blocks[2, 3, 0] = 3.0, 2.0, -5.0
    assert selected(blocks, PixelPrune(tau=tau), 2) == [0, 11]
    assert selected(blocks, PixelPrune(tau=tau), 4) == [0, 2, 3, 11]
    for k in range(1, 13):
        assert len(selected(blocks, PixelPrune(tau=tau), k)) == k


def test_frames_are_selected_from_one_by_one():
    torch.manual_seed(2)
    frames = [page(6, 8), noise(6, 8), torch.ones(6, 8, 384)]
    video = VisualTokens(torch.cat([f.flatten(0, 1) for f in frames]), ((3, 6, 8),), "video", pixel_shape=SHAPE)
    found = run_policy(PixelPrune(), [video], [None])[0].indices.tolist()
    assert found == [48 * i + k for i, frame in enumerate(frames) for k in by_hand(frame, 0.0)]


def test_options():
    with pytest.raises(ValueError, match="tau"):
        PixelPrune(tau=-1.0)
