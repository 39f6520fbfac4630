"""Choosing from each tile of a picture by itself."""

import pytest
import torch

from tokenprune import Selection, VisualTokens, pruning, pruning_report
from tokenprune.policies import VisionZip, VisPruner, make_policy
from tokenprune.policies.run import run_policy
from tokenprune.policies.tiles import in_order, tiles_of

from ..families import Picture, get_model, make_batch
from ..oracles import generate
from ..support.seen_tokens import seen_tokens
from .inputs import picks

PER_TILE = ["cdpruner", "mmtok", "scope", "visionzip", "vispruner"]


def mosaic(**more):
    """A thumbnail of 2 x 2 tokens, and a mosaic of 2 x 3 tokens from two tiles, of two columns and of one."""
    return VisualTokens(
        torch.arange(10.0)[:, None].expand(-1, 3),
        grids=((1, 2, 2), (1, 2, 3)),
        tile_borders=(((), ()), ((), (2,))),
        **more,
    )


def test_tiles_are_rectangles_of_the_raster():
    tokens = mosaic(encoder_attention=torch.arange(10.0) / 10, index=3, question=torch.ones(2, 3))
    parts = tiles_of(tokens)
    assert [part.features[:, 0].tolist() for part in parts] == [[0, 1, 2, 3], [4, 5, 7, 8], [6, 9]]
    assert [part.grid for part in parts] == [(1, 2, 2), (1, 2, 2), (1, 2, 1)]
    for part in parts:
        torch.testing.assert_close(part.encoder_attention, part.features[:, 0] / 10)
        assert part.question is tokens.question and part.index == 3 and part.tile_borders is None
    plain = VisualTokens(torch.zeros(4, 3), grids=((1, 2, 2),))
    assert tiles_of(plain) == [plain]


def test_indices_and_features_come_back_in_the_order_of_the_picture():
    chosen = Selection(torch.tensor([0, 5, 7, 8]), torch.tensor([[0.0], [5], [8], [6]]))  # tile by tile: 0, 5, 8, 6
    back = in_order(mosaic(), chosen)
    assert back.indices.tolist() == [0, 5, 6, 8] and back.features[:, 0].tolist() == [0, 5, 6, 8]


def test_each_tile_gets_its_share_of_the_budget():
    """All the attention is on the thumbnail, and on the last of a tile's tokens."""
    attention = torch.tensor([6.0, 7, 8, 9, 0, 1, 0, 2, 3, 1])
    whole, by_tile = (VisPruner(important=1.0, per_tile=each) for each in (False, True))
    assert picks(run_policy(whole, [mosaic(encoder_attention=attention)], [5])[0]) == [0, 1, 2, 3, 8]
    assert picks(run_policy(by_tile, [mosaic(encoder_attention=attention)], [5])[0]) == [2, 3, 7, 8, 9]
    assert picks(run_policy(by_tile, [mosaic(encoder_attention=attention)], [1])[0]) == [9]


def test_merged_features_follow_their_tokens():
    generator = torch.Generator().manual_seed(0)
    tokens = mosaic(encoder_attention=torch.rand(10, generator=generator), encoder_keys=torch.eye(10))
    together = run_policy(VisionZip(contextual=0.5, per_tile=True), [tokens], [5])[0]
    alone = [VisionZip(contextual=0.5).select(part, k) for part, k in zip(tiles_of(tokens), (2, 2, 1), strict=True)]
    expected = {}
    for part, selection in zip(tiles_of(tokens), alone, strict=True):
        features = part.features[selection.indices] if selection.features is None else selection.features
        expected |= dict(zip(part.features[selection.indices, 0].int().tolist(), features.tolist(), strict=True))
    assert dict(zip(picks(together), together.features.tolist(), strict=True)) == expected


def test_tiles_of_a_llava_next_are_those_that_its_tower_saw():
    """Each tile's features from before the projector are rows of one picture of the tower's batch."""
    model, tower = get_model("llava_next"), []
    policy = VisPruner(per_tile=True)
    seen = seen_tokens(policy)
    batch = make_batch("llava_next", [[2, Picture((40, 60)), 3], [Picture((24, 90)), 1, Picture((50, 20)), 2]])
    hook = model.model.vision_tower.register_forward_hook(lambda m, args, out: tower.append(out.hidden_states[-2]))
    try:
        with pruning(model, policy, 0.4):
            generate(model, batch.inputs, steps=1)
            records = pruning_report(model)
    finally:
        hook.remove()
    pictures = [tile for tile in tower[0] if bool(tile.any())]
    found = []
    for tokens in seen:
        hits = [i for i, tile in enumerate(pictures) if _is_among(tokens.encoder_features, tile[1:])]
        assert len(hits) == 1 and tokens.grid is not None
        found += hits
    assert len(records) == 3 and found == sorted(found) and len(found) == len(set(found)) > 2 * len(records)
    assert all(record.n_after == round(0.4 * record.n_before) for record in records)


def _is_among(rows, table):
    return bool((rows[:, None] == table[None]).all(-1).any(1).all())


@pytest.mark.parametrize("name", PER_TILE)
def test_the_option_is_refused_by_name(name):
    assert make_policy(name, per_tile=True).by_tile and not make_policy(name).by_tile
    with pytest.raises(ValueError, match="per_tile=1 must be True or False"):
        make_policy(name, per_tile=1)
