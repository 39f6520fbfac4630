"""HoliTom: windows, averages over them, and what stays of the rest, by hand."""

import pytest
import torch

from tokenprune.policies import HoliTom
from tokenprune.policies.holitom import _windows

from .inputs import picks, video

# Two frames of three places: the first two stand still, the third turns round.
FEATURES = torch.tensor([[1.0, 0], [0, 1], [1, 1], [3, 0], [0.3, 1], [-1, -1]])
AVERAGES = torch.tensor([[2.0, 0], [0.15, 1]])
ATTENTION = torch.tensor([1.0, 1, 1, 9, 9, 2])


@pytest.mark.parametrize(
    ("still", "windows"),
    [
        ([[1, 1, 1, 0], [1, 1, 1, 1]], [(0, 3)]),  # three places over three frames: 6; four over two: 4
        ([[1, 0, 0, 0], [1, 1, 1, 0]], [(0, 1), (1, 3)]),  # one place over three frames: 2; three over two: 3
        ([[1, 1], [0, 0], [1, 1]], [(0, 2), (2, 4)]),
        ([[1, 1, 1]] * 3, [(0, 4)]),
    ],
)
def test_windows_hold_the_most_static_tokens(still, windows):
    assert _windows(torch.tensor(still, dtype=torch.bool)) == windows


def test_a_picture_is_one_window():
    assert _windows(torch.zeros(0, 3, dtype=torch.bool)) == [(0, 1)]
    tokens = video(1, 1, 4, torch.eye(4), encoder_attention=torch.tensor([1.0, 3, 2, 4]))
    kept = HoliTom().select(tokens, 2)
    assert picks(kept) == [1, 3]
    assert kept.features is None


def select(k, **options):
    kept = HoliTom(**options).select(video(2, 1, 3, FEATURES, encoder_attention=ATTENTION), k)
    return picks(kept), kept.features


def test_holitom_averages_what_stands_still():
    kept, features = select(4)
    assert kept == [0, 1, 2, 5]
    torch.testing.assert_close(features, torch.cat([AVERAGES, FEATURES[[2, 5]]]))


def test_holitom_clusters_averages():
    """Three for two averages and a token of each frame: 1.5, 0.75 and 0.75, so one each."""
    kept, features = select(3)
    assert kept == [0, 2, 5]
    torch.testing.assert_close(features[0], 0.6 * AVERAGES[0] + 0.4 * AVERAGES[1])
    torch.testing.assert_close(select(3, anchor=1.0)[1][0], AVERAGES[0])


def test_holitom_averages_less_where_too_few_tokens_would_be_left():
    """Five of six: one place is averaged, the one that moves least. The others are tokens of their frames."""
    kept, features = select(5)
    assert kept == [0, 1, 2, 4, 5]
    torch.testing.assert_close(features, torch.cat([AVERAGES[:1], FEATURES[[1, 2, 4, 5]]]))


def test_holitom_chooses_the_rest_by_attention_and_density():
    """Nothing stands still: of three tokens of each frame, two stay."""
    assert select(4, static=1.0)[0] == [0, 1, 3, 4]
    kept, features = select(4, static=1.0, clustered=0.5)
    assert kept == [0, 1, 3, 4]  # one by attention, and a cluster of the other two
    for centre, other, merged in ((1, 2, features[1]), (4, 5, features[3])):
        torch.testing.assert_close(merged, 0.6 * FEATURES[centre] + 0.4 * FEATURES[other])
