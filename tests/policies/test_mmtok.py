"""MMTok: coverage of the question and of the picture."""

import pytest
import torch
import torch.nn.functional as F

from tokenprune import VisualTokens, pruning, pruning_report
from tokenprune.policies import MMTok

from ..builders import LLAVA_SIDE
from ..families import Picture, get_model, make_batch
from ..oracles import generate
from ..support.seen_tokens import seen_tokens
from .inputs import picks


def test_mmtok_is_its_definition():
    generator = torch.Generator().manual_seed(4)
    features, words = torch.randn(12, 6, generator=generator), torch.randn(3, 6, generator=generator)
    unit, word = F.normalize(features, dim=-1), F.normalize(words, dim=-1)
    seen, meant = (unit @ unit.T / 0.3).softmax(-1), (word @ unit.T / 0.1).softmax(-1)

    def covered(some):
        return float(meant[:, some].amax(1).mean() + 0.7 * seen[:, some].amax(1).mean())

    kept: list[int] = []
    for _ in range(5):
        kept.append(max((j for j in range(12) if j not in kept), key=lambda j: covered([*kept, j])))
    policy = MMTok(text_temperature=0.1, vision_temperature=0.3, alpha=0.7)
    assert picks(policy.select(VisualTokens(features, question=words), 5)) == sorted(kept)


def test_mmtok_hears_the_question():
    features = torch.eye(5)
    for i in range(5):
        assert picks(MMTok().select(VisualTokens(features, question=features[i : i + 1]), 1)) == [i]
    assert picks(MMTok().select(VisualTokens(features), 1)) == [0]


def test_mmtok_compares_patches_where_there_are_means_of_them():
    """The tokens are all alike; before the merger they are two and one."""
    patches = torch.eye(2)[[0, 0, 1]]
    tokens = VisualTokens(torch.ones(3, 4), encoder_patches=patches)
    assert picks(MMTok().select(tokens, 2)) == [0, 2]
    assert picks(MMTok().select(VisualTokens(torch.ones(3, 4)), 2)) == [0, 1]


def test_mmtok_leaves_padding_out_until_nothing_else_is_left():
    generator = torch.Generator().manual_seed(0)
    features, words = torch.randn(9, 5, generator=generator), torch.randn(2, 5, generator=generator)
    is_padding = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 1]).bool()
    tokens = VisualTokens(features, question=words, is_padding=is_padding)
    without = VisualTokens(features[~is_padding], question=words)
    real = torch.tensor([1, 2, 5, 6, 7])
    for k in range(1, 5):
        assert picks(MMTok().select(tokens, k)) == real[MMTok().select(without, k).indices].tolist()
    assert picks(MMTok().select(tokens, 5)) == real.tolist()
    assert picks(MMTok().select(tokens, 6)) == [1, 2, 4, 5, 6, 7]


def test_mmtok_covers_no_ignored_words():
    features = torch.eye(5)
    tokens = VisualTokens(features, question=features[[1, 3, 4]], question_ids=torch.tensor([8, 7, 8]))
    assert picks(MMTok(alpha=0).select(tokens, 1)) == [1]
    assert picks(MMTok(alpha=0, ignored=(8, 5)).select(tokens, 1)) == [3]
    assert picks(MMTok(alpha=0, ignored=(7, 8)).select(tokens, 1)) == [1]  # there are no others
    for wrong in (8, (1.5,), (-1,), (True,)):
        with pytest.raises(ValueError, match=r"ignored=.* must be a tuple or list of token ids, whole numbers >= 0"):
            MMTok(ignored=wrong)


def test_mmtok_sees_padding_and_ids_of_a_model():
    """The first picture is padded above and below to a square, with the mean colour rounded down."""
    model, batch = get_model("llava"), make_batch("llava", [[2, Picture((24, 24)), 3], [Picture((24, 24)), 4]])
    pixels = batch.inputs["pixel_values"]
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ([0.4815, 0.4578, 0.4082], [0.2686, 0.2613, 0.2758]))
    band = LLAVA_SIDE // 3
    colour = ((mean * 255).floor() / 255 - mean) / std
    pixels[0, :, :band] = pixels[0, :, -band:] = colour.to(pixels)
    policy = MMTok()
    seen = seen_tokens(policy)
    with pruning(model, policy, 10):
        generate(model, batch.inputs, steps=1)
        first, second = pruning_report(model)
    assert seen[0].is_padding.tolist() == [True] * 12 + [False] * 12 + [True] * 12
    assert not seen[1].is_padding.any()
    assert len(first.indices) == len(second.indices) == 10 and set(first.indices) <= set(range(12, 24))
    for tokens, row, n in zip(seen, batch.inputs["input_ids"], (3, 4), strict=True):
        assert tokens.question_ids.tolist() == row[-n:].tolist()
        torch.testing.assert_close(model.get_input_embeddings()(tokens.question_ids), tokens.question)
