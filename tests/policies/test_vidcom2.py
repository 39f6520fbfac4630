"""VidCom2: budgets of frames, and tokens within them."""

import torch

from tokenprune.policies import VidCom2

from .inputs import picks, video


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
