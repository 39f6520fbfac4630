"""Removing visual tokens equals masking them: families, policies (see `products`), ragged batches, generate."""

import pytest
import torch

from tokenprune import pruning, pruning_report
from tokenprune.policies import make_policy

from .families import FAMILIES, VIDEO_FAMILIES, get_model, ragged_batch
from .oracles import assert_same, check_against_oracles, generate, keep_mask, masked
from .policies_table import CHANGES_FEATURES, POLICIES
from .support.products import product


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize(("family", "policy"), product(FAMILIES, POLICIES))
def test_images(family, positions, policy):
    batch = ragged_batch(family)
    name, options = POLICIES[policy]
    records = check_against_oracles(get_model(family), batch, name, 0.3, positions, name in CHANGES_FEATURES, **options)
    assert [(r.sample, r.visual) for r in records] == [(0, 0), (1, 0), (1, 1), (2, 0)]
    if make_policy(name, **options).exact:
        assert all(r.n_after == max(1, round(0.3 * r.n_before)) for r in records)
    assert all(0 < r.n_after < 0.6 * r.n_before for r in records)
    assert all(r.grids is not None for r in records)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize(("family", "policy"), product(VIDEO_FAMILIES, POLICIES, ("llava_onevision", "qwen2_5_vl")))
def test_videos(family, positions, policy):
    batch = ragged_batch(family, video=True)
    name, options = POLICIES[policy]
    records = check_against_oracles(get_model(family), batch, name, 0.4, positions, name in CHANGES_FEATURES, **options)
    assert [r.kind for r in records] == ["video", "image", "video", "video"]
    assert all(r.grid[0] == 2 for r in records if r.kind == "video")


@pytest.mark.parametrize("family", FAMILIES)
def test_recoverable_finds_its_own_count(family):
    records = check_against_oracles(get_model(family), ragged_batch(family), "recoverable", None, "original", True)
    assert all(1 <= r.n_after <= r.n_before for r in records)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_token_per_image(family):
    positions = "original"
    records = check_against_oracles(get_model(family), ragged_batch(family), "divprune", 1, positions)
    assert all(r.n_after == 1 for r in records)


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_is_the_stock_model_to_the_bit(family, video):
    if video and family not in VIDEO_FAMILIES:
        pytest.skip("takes no video")
    model, batch = get_model(family), ragged_batch(family, video)
    before = generate(model, batch.inputs)
    with pruning(model, "divprune", 1.0):
        during = generate(model, batch.inputs)
        assert all(r.n_after == r.n_before for r in pruning_report(model))
    after = generate(model, batch.inputs)
    for run in (during, after):
        assert torch.equal(run.tokens, before.tokens)
        assert torch.equal(run.logits, before.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_model_is_untouched_by_pruning_in_between(family):
    model, batch = get_model(family), ragged_batch(family)
    before = generate(model, batch.inputs)
    with pruning(model, "random", 0.2):
        assert not torch.equal(generate(model, batch.inputs).logits, before.logits)
    after = generate(model, batch.inputs)
    assert torch.equal(after.logits, before.logits)


def test_oracle_can_fail():
    """Another choice of tokens gives other logits, so agreement means something."""
    model, batch = get_model("llava"), ragged_batch("llava")
    with pruning(model, "random", 0.3):
        run = generate(model, batch.inputs)
        kept = keep_mask(batch, pruning_report(model))
    assert_same(run, masked(model, batch, kept))  # positions are kept unless asked otherwise
    other = kept.clone()
    row, columns, _ = batch.visuals[0]
    other[row, columns] = ~other[row, columns]
    with pytest.raises(AssertionError):
        assert_same(run, masked(model, batch, other))
    with pytest.raises(AssertionError):
        assert_same(run, masked(model, batch, kept, "compact"))
