"""RLT: what stays of a video by its pixels, by hand."""

import pytest
import torch

from tokenprune import VisualTokens
from tokenprune.policies import RLT, Grid

SHAPE = (2, 3, 2, 4)  # patches of a token, channels, frames, pixels of a patch


def video(frames: torch.Tensor) -> VisualTokens:
    """A video of tokens of one colour by frame, (2 * T, H, W)."""
    t, h, w = len(frames) // 2, *frames.shape[1:]
    # (T, H, W, patches, channels, frames, pixels)
    values = frames.view(t, 2, h, w).permute(0, 2, 3, 1)[..., None, None, :, None]
    return VisualTokens(values.expand(t, h, w, *SHAPE).reshape(t * h * w, -1), ((t, h, w),), "video", pixel_shape=SHAPE)


def kept(tokens: VisualTokens, n_keep: int | None = None, threshold: float = 0.1) -> list[int]:
    return RLT(threshold).select(tokens, n_keep).indices.tolist()


def test_what_does_not_change_leaves():
    frames = torch.zeros(6, 1, 3)
    frames[2:4, 0, 1] = 0.5  # both frames of the second token
    frames[4, 0, 2] = 0.05  # less than the threshold
    assert kept(video(frames)) == [0, 1, 2, 4, 7]  # place 1 changes, and changes back
    assert kept(video(frames), threshold=0.6) == [0, 1, 2]
    assert kept(video(torch.zeros(6, 1, 3))) == [0, 1, 2]


def test_the_first_frame_before_is_compared_with_the_last_one_after():
    """A slow drift: neighbouring frames differ by 0.04, those two by 0.12."""
    frames = (torch.arange(8) * 0.04).view(8, 1, 1)
    assert kept(video(frames)) == [0, 1, 2, 3]
    assert kept(video(frames), threshold=0.13) == [0]


def test_a_budget():
    frames = torch.zeros(6, 1, 3)
    frames[3, 0, 1], frames[5, 0, 2], frames[5, 0, 0] = 0.5, 0.9, 0.3
    assert kept(video(frames), 4) == [0, 1, 2, 8]
    assert kept(video(frames), 5) == [0, 1, 2, 4, 8]
    assert kept(video(frames), 1) == [1]
    assert [len(kept(video(frames), k)) for k in range(1, 9)] == list(range(1, 9))


def test_images():
    image = VisualTokens(torch.zeros(12, 48), ((1, 3, 4),), pixel_shape=SHAPE)
    assert kept(image) == list(range(12))
    assert kept(image, 2) == Grid().select(image, 2).indices.tolist()


def test_options():
    with pytest.raises(ValueError, match="threshold"):
        RLT(threshold=-0.1)
