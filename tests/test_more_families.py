"""The families that generic tests do not run over, each held to the oracles in a few short tests.

What they share with those of `families.FAMILIES` is tested there. What a family states of its own is tested here:
placeholders, rasters, positions, masks, further arguments of the text model, and its vision encoder. With FULL=1 every
policy of the vision stage runs on all of them.
"""

import pytest
import torch
import torch.nn.functional as F

from tokenprune import apply_pruning, pruning, pruning_report, remove_pruning
from tokenprune.patches.families.acting import before_encoder, inside_encoder
from tokenprune.patches.packed_tower import no_packed_geometry

from .families import ALIKE, MORE, Batch, facts_of, get_model, small_batch
from .oracles import (
    assert_same,
    check_against_oracles,
    check_decoder_stage,
    generate,
    keep_mask,
    masked,
    native_short,
)
from .policies_table import CHANGES_FEATURES, POLICIES
from .support.products import FULL
from .support.snapshot import snapshot

CASES = {**ALIKE, **MORE}
VIDEOS = [name for name, case in CASES.items() if case.video]
READABLE = [name for name in CASES if facts_of(name).encoder is not None]
TOWERS = [name for name in READABLE if facts_of(name).encoder.layers is not None]
PIXTRALS = [name for name in READABLE if facts_of(name).encoder.pixtral is not None]
STEPS = 3


def check(family, batch):
    """A policy that reads the vision encoder against one oracle, and one that merges against the other."""
    if FULL:
        asked = dict.fromkeys(POLICIES if family in READABLE else ("divprune", "random"), "masked, native-short")
    else:
        asked = {"fopru-rank": "native-short", "recoverable": "masked"}
        asked = asked if family in READABLE else {"divprune": "masked, native-short"}
    for label, oracles in asked.items():
        name, options = POLICIES[label]
        options = dict(options, changes_features=name in CHANGES_FEATURES, steps=STEPS, oracles=oracles)
        records = check_against_oracles(get_model(family), batch, name, 0.3, "original", **options)
        assert all(0 < r.n_after < 0.6 * r.n_before for r in records)
    return records


@pytest.mark.parametrize("family", CASES)
def test_images(family):
    records = check(family, small_batch(family))
    assert [(r.sample, r.visual, r.kind) for r in records] == [(0, 0, "image"), (1, 0, "image"), (1, 1, "image")]
    assert all((r.grids is not None) == CASES[family].raster for r in records)


@pytest.mark.parametrize("family", VIDEOS)
def test_videos(family):
    case = CASES[family]
    records = check(family, small_batch(family, video=True))
    clip = ["video"] * (2 if case.by_frame else 1)  # frames of it, or the whole
    assert [r.kind for r in records] == [*clip, *(["image"] if case.mixed else clip), *clip]
    assert all(r.grid is not None and r.grid[0] == case.frames for r in records if r.kind == "video")


@pytest.mark.parametrize("family", CASES)
def test_keeping_all_is_the_stock_model_to_the_bit(family, request):
    """And what is hung on a model comes off again."""
    model = get_model(family)
    request.addfinalizer(lambda: remove_pruning(model))
    for video in (False, True)[: 1 + (family in VIDEOS)]:
        batch = small_batch(family, video)
        stock = generate(model, batch.inputs, 2)
        before = snapshot(model)
        apply_pruning(model, "recoverable" if family in READABLE else "divprune", 1.0)
        assert snapshot(model) != before
        assert torch.equal(generate(model, batch.inputs, 2).logits, stock.logits)
        remove_pruning(model)
        assert snapshot(model) == before


@pytest.mark.parametrize("family", CASES)
def test_second_turn(family):
    """On the cache of the first turn, with positions that are numbered again."""
    model, batch, case = get_model(family), small_batch(family), CASES[family]
    with pruning(model, "random", 0.3, positions="compact"):
        first = model.generate(
            **batch.inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True,
            suppress_tokens=[90, 91],
        )  # fmt: skip
        kept = keep_mask(batch, pruning_report(model))
        more = torch.randint(3, 89, (len(kept), 4), generator=torch.Generator().manual_seed(1))
        ids = torch.cat([first.sequences, more], 1)
        added = ids.shape[1] - kept.shape[1]
        turn = dict(input_ids=ids, attention_mask=F.pad(batch.inputs["attention_mask"], (0, added), value=1))
        run = generate(model, turn, STEPS, past_key_values=first.past_key_values)
    again = case.further(ids, batch.visuals, batch.inputs)
    types = {k: F.pad(v, (0, added)) for k, v in batch.inputs.items() if k == "token_type_ids"}
    full, kept = Batch({**batch.inputs, **turn, **types, **again}, batch.visuals), F.pad(kept, (0, added), value=True)
    if case.hybrid:
        assert_same(run, native_short(model, full, kept, "compact", STEPS), 1e-3)
    else:
        assert_same(run, masked(model, full, kept, "compact", STEPS))


@pytest.mark.parametrize("family", CASES)
def test_decoder_stage(family):
    """Tokens leave between decoder layers, or the reason is given why they cannot."""
    model, reason = get_model(family), facts_of(family).no_decoder_stage
    if reason is not None:
        with pytest.raises(ValueError, match="does not allow") as error:
            apply_pruning(model, "fastv")
        assert reason in str(error.value)
        return
    records = check_decoder_stage(model, small_batch(family), ["divprune", "fastv"], 0.3, steps=STEPS)
    assert any(r.cuts for r in records)


@pytest.mark.parametrize("family", CASES)
def test_what_acts_before_and_inside_the_encoder_is_what_the_lists_say(family):
    model, facts = get_model(family), facts_of(family)
    listed = {*inside_encoder(facts), *(["grid@pixels"] if before_encoder(facts) else [])}
    if no_packed_geometry() is not None and facts.encoder is not None and facts.encoder.packed_tower is not None:
        listed = set()
    for policy in ("grid@pixels", "flowcut", "ipcv", "tome", "downsample"):
        try:
            with pruning(model, policy, 0.5):
                allowed = True
        except ValueError as error:  # small towers have too few layers for some
            allowed = "needs a vision tower" in str(error) or "cannot place the CLS" in str(error)
        assert allowed == (policy in listed), policy


@pytest.mark.parametrize("family", CASES)
def test_encoder_stage(family):
    """Tokens leave inside the vision encoder, or the reason is given why they cannot."""
    model, facts = get_model(family), facts_of(family)
    if family in TOWERS or family in PIXTRALS:
        check_against_oracles(model, small_batch(family), "flowcut", 0.3, "original", True, STEPS, every=1)
    if family in TOWERS:
        return
    with pytest.raises(ValueError, match=r"does not allow: .* before the language model") as error:
        apply_pruning(model, "tome", 0.5)
    if facts.encoder is not None and facts.encoder.packed_tower is not None:  # see `patches/test_packed_stage.py`
        assert (no_packed_geometry() or "its merger makes one token of 4 neighbouring patches") in str(error.value)
    elif family in PIXTRALS:
        assert "takes all pictures as one sequence, whose patches can leave together" in str(error.value)
    else:
        assert facts.no_encoder_stage in str(error.value)
