"""The benchmark of the vision encoder, on an embedded model."""

import pytest

from tokenprune.eval.bench_encoder import SETTINGS, measure
from tokenprune.eval.minivlm import load
from tokenprune.eval.profile import shapes
from tokenprune.eval.profile.command import noise_inputs
from tokenprune.patches.packed_tower import no_packed_geometry


@pytest.mark.skipif(no_packed_geometry() is not None, reason="this transformers has no seam in its towers")
def test_what_each_place_saves():
    model, processor = load("qwen")
    rows = measure(model, noise_inputs(processor, shapes.Request(side=96)), rounds=1)
    assert [row["setting"] for row in rows] == list(SETTINGS)
    full, behind, before, both, _ = rows
    assert full["vision_flops"] == behind["vision_flops"] > both["vision_flops"] > before["vision_flops"] > 0
    assert full["flops"] > behind["flops"] > both["flops"] > before["flops"]
    assert (
        behind["tokens"]["vision"] == before["tokens"]["vision"] == both["tokens"]["vision"] < both["tokens"]["pixels"]
    )
    assert all(0 < row["vision_seconds"] < row["seconds"] for row in rows)
    assert "get_image_features" not in vars(model.model)
