"""CoverPruner: weighted coverage of centred tokens, by hand."""

import torch

from tokenprune import VisualTokens
from tokenprune.policies import CoverPruner

from .inputs import decoder_view, kept_places, picks

# Around their mean: two to the right, one to the left, one up, one down. Their own cosines are all about 1.
TOKENS = torch.tensor([[1.0, 0], [2, 0], [-3, 0], [0, 1], [0, -1]]) + 50
WEIGHT = torch.tensor([0.1, 0.1, 0.3, 0.25, 0.24])
ORDER = [2, 3, 4, 0, 1]  # 0.3, 0.25, 0.24, then 0.1 + 0.1, which is covered by either


def test_coverpruner_covers_what_weighs_most():
    for k in range(1, 5):
        kept = CoverPruner().select(VisualTokens(TOKENS, encoder_attention=WEIGHT), k)
        assert picks(kept) == sorted(ORDER[:k])
    equal = CoverPruner(weights="equal")
    assert equal.encoder_spec() is None
    assert picks(equal.select(VisualTokens(TOKENS), 1)) == [0]  # covers two tokens


def test_coverpruner_weighs_by_the_first_decoder_layer():
    policy = CoverPruner(weights="decoder")
    assert [str(stage) for stage in policy.stages] == ["decoder"]
    assert policy.decoder_layers(8, 3) == [3]
    attention = torch.zeros(7, 7)
    attention[6, 1:6] = WEIGHT
    embeds = torch.cat([torch.zeros(1, 2), TOKENS, torch.zeros(1, 2)])
    for k in range(1, 5):
        view = decoder_view([[1, 2, 3, 4, 5]], [k], attention, text=(6,), embeds=embeds)
        assert kept_places(policy.decoder_select(view)) == [sorted(ORDER[:k])]
