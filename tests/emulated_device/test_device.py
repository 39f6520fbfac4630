"""On a device that is not the host: the same tokens, and waits for it that do not grow with the batch."""

import contextlib
import re

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tokenprune import pruning, pruning_report
from tokenprune.patches.families.registry import family_of
from tokenprune.patches.modules import base_of
from tokenprune.patches.packed_tower import no_packed_geometry

from ..builders import LLAVA_SIDE
from ..families import CASES, ENCODES_FIRST, FAMILIES, VIDEO_FAMILIES, even_batch, get_model, ragged_batch
from ..policies_table import DEEP, POLICIES, TOWER
from .device import DEVICE, LAUNCHES, SECOND, blocks, device_mode, moved

TABLE = {**POLICIES, **TOWER, **DEEP}
# Between them: text, what the encoder says, features that change, and the decoder.
FEW = ["auto", "visionzip"]
# Waits that a method itself cannot do without, for each picture, or for each row in the decoder.
PER_PICTURE = {"random": 1, "holov": 1, "vidcom2": 1, "fastvid": 1, "flashvid": 1, "holitom": 1}
PER_ROW = {"todre": 1, "sparsevlm": 1, "priortr": 1}


def check(family, video, name, options, second=()):
    model, batch = get_model(family), ragged_batch(family, video)
    settings = dict(max_new_tokens=3, do_sample=False)
    with pruning(model, name, keep=0.3, budget="final", **options):
        expected = model.generate(**batch.inputs, **settings)
        records = pruning_report(model)
    with device_mode():
        twin = moved(model, second)
        with pruning(twin, name, keep=0.3, budget="final", **options):
            tokens = twin.generate(**{k: v.to(DEVICE) for k, v in batch.inputs.items()}, **settings)
            same = pruning_report(twin)
        assert tokens.device == DEVICE
        assert {p.device for p in twin.parameters()} == ({DEVICE, SECOND} if second else {DEVICE})
        assert tokens.tolist() == expected.tolist()
    assert [(r.indices, r.cuts) for r in same] == [(r.indices, r.cuts) for r in records]
    assert any(r.n_after < r.n_before or r.cuts for r in records)


@pytest.mark.parametrize("policy", FEW)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, policy):
    for video in [False, True][: 1 + (family in VIDEO_FAMILIES)]:
        check(family, video, *TABLE[policy])


@pytest.mark.parametrize("policy", TABLE)
def test_every_policy(policy):
    check("llava", False, *TABLE[policy])


@pytest.mark.parametrize("policy", [name for name in TABLE if name not in TOWER])
def test_every_policy_on_videos(policy):
    check("qwen2_5_vl", True, *TABLE[policy])


@pytest.mark.skipif(no_packed_geometry() is not None, reason="this transformers has no seam in its towers")
@pytest.mark.parametrize(
    ("family", "policy"),
    [
        ("qwen3_vl", ["grid@pixels", "flowcut", "divprune"]),
        ("internvl", ["ipcv", "divprune"]),
        ("qwen3_vl", ["grid@pixels", "ipcv", "divprune"]),
        ("idefics3", "grid@pixels"),
        ("mistral3", ["pixelprune", "flowcut"]),
        ("gemma4", "grid@pixels"),
    ],
)
def test_before_and_inside_the_tower(family, policy):
    if family not in CASES:
        pytest.skip("not in this transformers")
    check(family, family == "qwen3_vl", policy, {})


@pytest.mark.parametrize(("half", "policy"), [("tower", "visionzip"), ("upper layers", "auto")])
@pytest.mark.parametrize("family", [name for name, case in FAMILIES.items() if not case.hybrid])
def test_over_two_devices(family, half, policy):
    """What `device_map="auto"` does with several GPUs; on hybrids not even the stock model runs here so."""
    names = blocks(get_model(family))
    above = re.compile(r"layers\.[1-9]\d*$|norm$|^lm_head$")
    upper = [name for name in names if above.search(name)]
    lower = [name for name in names if name not in upper and family_of(get_model(family)).text_model not in name]
    check(family, False, *TABLE[policy], second=upper if half == "upper layers" else lower)


def test_a_decoder_on_the_second_device():
    """With a row without a picture, and attention that is read there of the other rows' texts."""
    whole = re.compile(r"layers\.\d+$|norm$|^lm_head$")
    second = [name for name in blocks(get_model("llava")) if whole.search(name)]
    check("llava", False, *TABLE["auto"], second=second)


def waits(times, name, options):
    """Of a prefill of the ragged batch, `times` over."""
    batch = ragged_batch("llava")
    with device_mode() as counted:
        twin = moved(get_model("llava"))
        inputs = {k: torch.cat([v] * times).to(DEVICE) for k, v in batch.inputs.items()}
        with pruning(twin, name, keep=0.3, budget="final", **options):
            counted.clear()
            twin(**inputs, use_cache=True)
    return sum(counted.values())


@pytest.mark.parametrize("policy", TABLE)
def test_waits_do_not_grow_with_the_batch(policy):
    rows, pictures = 3, 4
    more = rows * PER_ROW.get(policy, 0) + pictures * PER_PICTURE.get(policy, 0)
    once = waits(1, *TABLE[policy])
    assert once <= 16
    assert waits(2, *TABLE[policy]) == once + more


def launches(name, keep, rows):
    """Of a prefill of `rows` times the same prompt of one picture."""
    model = get_model("llava")
    pixels = torch.randn(1, 3, LLAVA_SIDE, LLAVA_SIDE, generator=torch.Generator().manual_seed(0))
    n_tokens = sum(map(len, base_of(model).get_image_features(pixel_values=pixels).pooler_output))
    ids = torch.tensor([[5, 6, *[model.config.image_token_id] * n_tokens, 7, 8, 9]])
    with device_mode():
        twin = moved(model)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
        inputs = {k: torch.cat([v] * rows).to(DEVICE) for k, v in inputs.items()}
        with pruning(twin, name, keep=keep):
            LAUNCHES.clear()
            twin(**inputs, use_cache=True)
    return sum(LAUNCHES.values())


@pytest.mark.parametrize("policy", ["auto", "divprune"])
def test_launches_for_pruning_hardly_grow_with_the_batch(policy):
    one, eight = (launches(policy, 0.3, rows) - launches(policy, 1.0, rows) for rows in (1, 8))
    assert one > 10
    assert eight <= one + 10


def decode_waits(name, options, static):
    """Of one decode step of two rows without padding, as `generate` prepares it; None: the stock model."""
    batch = even_batch()
    with device_mode() as counted:
        twin = moved(get_model("llava"))
        config = twin.config.get_text_config()
        cache = StaticCache(config=config, max_cache_len=96) if static else DynamicCache()
        inputs = {k: v.to(DEVICE) for k, v in batch.inputs.items()}
        with pruning(twin, name, keep=0.4, budget="final", **options) if name else contextlib.nullcontext():
            twin(**inputs, past_key_values=cache, use_cache=True)
            length = batch.inputs["input_ids"].shape[1]
            fed = dict(past_key_values=cache, use_cache=True, attention_mask=torch.ones(2, length + 1).to(DEVICE))
            fed |= dict(position_ids=torch.full((2, 1), length).to(DEVICE), is_first_iteration=False)
            ids = torch.full((2, length + 1), 5).to(DEVICE)
            counted.clear()
            twin(**twin.prepare_inputs_for_generation(ids, next_sequence_length=1, **fed))
    return sum(counted.values())


@pytest.mark.skipif(not ENCODES_FIRST, reason="static caches of this transformers count on the host")
@pytest.mark.parametrize("static", [False, True])
def test_a_decode_step_waits_no_more_than_the_stock_models(static):
    stock = decode_waits(None, {}, static)
    assert [decode_waits(*TABLE[policy], static) for policy in ("divprune", "fastv")] == [stock, stock]
