"""Tokens that leave at a decoder layer: equal to hiding them from that layer on."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from transformers import DynamicCache
from transformers.utils import is_flash_attn_2_available

from tokenprune import Policy, PrunedCacheError, apply_pruning, pruning, pruning_report, remove_pruning
from tokenprune.patches.cache import layout_of
from tokenprune.policies import FastV

from ..families import FAMILIES, PLAIN_FAMILIES, Batch, even_batch, get_model, ragged_batch, text_of
from ..oracles import (
    assert_same,
    check_decoder_stage,
    deep_masked,
    generate,
    keep_mask,
    masked,
    upper_masks,
    without,
)
from ..policies_table import DEEP
from ..support.products import product


@dataclass
class SomeRows(Policy):
    """Drops all visual tokens of the rows it is told to, from layer 2 on."""

    rows: tuple[int, ...] = ()
    stage: ClassVar = "decoder"

    def __post_init__(self):
        self.row = -1

    def decoder_layers(self, n_layers, lowest):
        return [2]

    def decoder_select(self, view):
        self.row += 1
        if self.row in self.rows:
            return [torch.zeros(len(places), dtype=torch.bool) for places in view.visual]
        return None


def check(family, policy, video=False, batch=None, **options):
    return check_decoder_stage(get_model(family), batch or ragged_batch(family, video), policy, **options)


# A model family is met in three ways: attention between columns (FastV), keys and hidden states (DART), and a cut
# behind a vision stage (Auto). Deepstack families let tokens leave from a later layer on: every policy runs there.
PAIRS = product(PLAIN_FAMILIES, DEEP, ("llava", "qwen2_5_vl", "qwen3_vl"), ("fastv", "dart", "auto"))


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize(("family", "label"), PAIRS)
def test_oracle(family, label, positions):
    policy, options = DEEP[label]
    records = check(family, policy, positions=positions, **options)
    share = 0.3**0.5 if "+" in label or label == "auto" else 0.3 if label == "todre" else 1.0
    for r in records:
        assert r.n_after == max(1, round(share * r.n_before))
        assert len(r.deep_indices) == (0 if label in ("todre", "vtw") else max(1, round(0.3 * r.n_before)))


@pytest.mark.parametrize("family", [f for f in PLAIN_FAMILIES if FAMILIES[f].video])
def test_oracle_on_videos(family):
    check(family, "fastv", video=True)


@pytest.mark.parametrize("family", [f for f in PLAIN_FAMILIES if not f.startswith("qwen3_vl")])
def test_oracle_at_the_first_layer(family):
    check(family, "fastv", layer=1)


@pytest.mark.parametrize("family", PLAIN_FAMILIES)
@pytest.mark.parametrize("rows", [(1,), (0, 2), (0, 1, 2)])
def test_rows_decide_for_themselves(family, rows):
    """A row that drops all and a neighbour that drops nothing."""
    records = check(family, SomeRows(rows=rows))
    assert {r.sample for r in records if r.deep_indices == []} == set(rows)


@dataclass
class Stagewise(Policy):
    """At layer 1 the rows `early` drop all, at layer 2 the rows `late`; or each layer halves all rows."""

    early: tuple[int, ...] = ()
    late: tuple[int, ...] = ()
    halve: bool = False
    stage: ClassVar = "decoder"

    def __post_init__(self):
        self.calls = []

    def decoder_layers(self, n_layers, lowest):
        return [1, 2]

    def decoder_select(self, view):
        if self.halve:
            return [torch.arange(len(places)) % 2 == 0 for places in view.visual]
        self.calls.append(view)  # three rows at layer 1, then those at layer 2 that still have tokens
        n = len(self.calls) - 1
        rest = [row for row in range(3) if row not in self.early]
        drop = n in self.early if n < 3 else rest[n - 3] in self.late
        return [torch.zeros(len(places), dtype=torch.bool) for places in view.visual] if drop else None


MULTI = [f for f in PLAIN_FAMILIES if not f.startswith("qwen3_vl")]


@pytest.mark.parametrize("family", MULTI)
@pytest.mark.parametrize(("early", "late"), [((0,), (2,)), ((1, 2), (0,)), ((), (1,)), ((0, 1, 2), ())])
def test_rows_leave_at_layers_of_their_own(family, early, late):
    records = check(family, Stagewise(early, late))
    assert {r.sample for r in records if r.deep_layer == 1} == set(early)
    assert {r.sample for r in records if r.deep_layer == 2} == set(late)


@pytest.mark.parametrize("family", MULTI)
@pytest.mark.parametrize("before", [False, True])
def test_every_layer_cuts_again(family, before):
    model, batch = get_model(family), ragged_batch(family)
    policy = ["grid", Stagewise(halve=True)] if before else Stagewise(halve=True)
    with pruning(model, policy, 0.5, budget="final", positions="original"):
        run = generate(model, batch.inputs)
        records = pruning_report(model)
        cache = model(**batch.inputs, use_cache=True).past_key_values
    keep, padding = keep_mask(batch, records), batch.inputs["attention_mask"].bool()
    upper = {1: without(keep, batch, [r.indices[::2] for r in records])}
    upper[2] = without(keep, batch, [r.indices[::4] for r in records])
    assert [r.deep_indices for r in records] == [r.indices[::4] for r in records]
    assert_same(run, deep_masked(model, batch, keep, upper))
    lengths = [int((m & padding).sum(1).max()) for m in (keep, upper[1], upper[2])]
    if not before:
        lengths[0] = padding.shape[1]  # nothing left before the text model, padding neither
    assert [layer.keys.shape[-2] for layer in cache.layers] == lengths


def test_oracle_of_the_tests_can_fail():
    model, batch = get_model("llava"), ragged_batch("llava")
    with pruning(model, "fastv@final", 0.3, positions="original"):
        run = generate(model, batch.inputs)
        records = pruning_report(model)
    upper = upper_masks(batch, records)
    keep = keep_mask(batch, records)
    for other in (deep_masked(model, batch, keep, {1: upper[2]}), masked(model, batch, upper[2])):
        with pytest.raises(AssertionError):
            assert_same(run, other)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations(implementation):
    model = get_model("llava")
    before = text_of(model).config._attn_implementation
    text_of(model).set_attn_implementation(implementation)
    try:
        check("llava", "fastv", batch=even_batch())
    finally:
        text_of(model).set_attn_implementation(before)


@pytest.mark.parametrize("family", PLAIN_FAMILIES)
def test_layers_hold_what_they_should(family):
    model, batch = get_model(family), ragged_batch(family)
    with torch.no_grad(), pruning(model, ["grid", "fastv"], 0.3, budget="final"):
        cache = model(**batch.inputs, use_cache=True).past_key_values
        records = pruning_report(model)
    padding = batch.inputs["attention_mask"].bool()
    lower = int((keep_mask(batch, records) & padding).sum(1).max())
    upper = int((upper_masks(batch, records)[2] & padding).sum(1).max())
    assert [layer.keys.shape[-2] for layer in cache.layers] == [lower, lower, upper]
    assert upper < lower < padding.shape[1] == cache.get_seq_length() == cache.get_seq_length(2)


@pytest.mark.parametrize("family", PLAIN_FAMILIES)
def test_keeping_all_changes_no_bit(family):
    model, batch = get_model(family), ragged_batch(family)
    before = generate(model, batch.inputs)
    for policy in ("fastv", ["divprune", "fastv"], SomeRows()):
        with pruning(model, policy, 1.0):
            assert torch.equal(generate(model, batch.inputs).logits, before.logits)
    assert torch.equal(generate(model, batch.inputs).logits, before.logits)


@pytest.mark.parametrize("policy", ["fastv", ["random", "fastv"], Stagewise((0,), (2,))])
def test_second_turn(policy):
    model, batch = get_model("llava"), ragged_batch("llava")
    with pruning(model, policy, 0.3, budget="final", positions="original"):
        first = model.generate(
            **batch.inputs,
            max_new_tokens=4,
            do_sample=False,
            return_dict_in_generate=True,
            past_key_values=DynamicCache(),
        )
        records = pruning_report(model)
        more = torch.randint(3, 89, (4, 5), generator=torch.Generator().manual_seed(1))
        ids = torch.cat([first.sequences, more], 1)
        later = ids.shape[1] - batch.inputs["input_ids"].shape[1]
        mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, later), value=1)
        run = generate(model, dict(input_ids=ids, attention_mask=mask), past_key_values=first.past_key_values)
    # the whole conversation at once; the second turn's columns are seen by all layers
    upper = upper_masks(batch, records)
    pad = lambda m: torch.nn.functional.pad(m, (0, later), value=True)
    full = Batch({**batch.inputs, "input_ids": ids, "attention_mask": mask}, batch.visuals)
    keep = pad(keep_mask(batch, records))
    assert_same(run, deep_masked(model, full, keep, {i: pad(m) for i, m in upper.items()}))


def test_beams_reorder_both_layouts():
    model, batch = get_model("llava"), ragged_batch("llava")
    with torch.no_grad(), pruning(model, "fastv@final", 0.3):
        model.generate(**batch.inputs, max_new_tokens=4, num_beams=3, do_sample=False)
        cache = model(**batch.inputs, use_cache=True).past_key_values
        columns = layout_of(cache).by_decoder_layer[2].columns.clone()
        cache.reorder_cache(torch.tensor([3, 2, 1, 0]))
        assert torch.equal(layout_of(cache).by_decoder_layer[2].columns, columns.flip(0))


@pytest.mark.parametrize("other", ["divprune", FastV(layer=1)])
def test_a_cut_cache_is_refused_by_another_policy(other):
    """Its upper layers hold columns that this policy's hooks know nothing of."""
    model, batch = get_model("llava"), ragged_batch("llava")
    with torch.no_grad(), pruning(model, "fastv@final", 0.3):
        cache = model(**batch.inputs, use_cache=True).past_key_values
        with pruning(model, other, 0.3, budget="final"), pytest.raises(PrunedCacheError, match="decoder layer 2"):
            model(input_ids=torch.ones(4, 1, dtype=torch.long), past_key_values=cache)
        model(input_ids=torch.ones(4, 1, dtype=torch.long), past_key_values=cache)


def test_layers_that_do_not_fit_are_refused():
    model = get_model("llava")
    with pytest.raises(ValueError, match="layer 3; this model accepts 1 to 2"):
        apply_pruning(model, "fastv", layer=3)
    with pytest.raises(ValueError, match="layer 1; this model accepts 2 to 2"):
        apply_pruning(get_model("qwen3_vl"), "fastv", layer=1)
    for layer in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="whole number >= 1"):
            apply_pruning(model, "fastv", layer=layer)
    with pytest.raises(ValueError, match="only one policy can act at the decoder stage"):
        apply_pruning(model, ["fastv", FastV(layer=1)])
    with pytest.raises(ValueError, match="into policy instances"):
        apply_pruning(model, ["divprune", "fastv"], layer=1)
    with pytest.raises(ValueError, match="empty list"):
        apply_pruning(model, [])
    remove_pruning(model)


def test_loss_follows_both_cuts():
    model, batch = get_model("llava"), ragged_batch("llava")
    labels = batch.inputs["input_ids"].masked_fill(batch.inputs["attention_mask"] == 0, -100)
    labels[:, :-4] = -100  # text after every image
    with torch.no_grad(), pruning(model, "fastv@final", 0.3):
        out = model(**batch.inputs, labels=labels)
    assert out.logits.shape[1] < labels.shape[1]
    expected = torch.nn.functional.cross_entropy(out.logits[:, -5:-1].flatten(0, 1), labels[:, -4:].flatten())
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.skipif(
    not (torch.cuda.is_available() and is_flash_attn_2_available()), reason="needs a GPU and FlashAttention-2"
)
@pytest.mark.parametrize("policy", ["divprune", "fastv", "todre"])
def test_flash_attention_2_agrees_with_sdpa(policy):
    """On a GPU, in bfloat16, whose noise bounds what can be asked: the same first logits, closely."""
    model, batch = copy.deepcopy(get_model("llava")).to("cuda", torch.bfloat16), ragged_batch("llava")
    inputs = {k: v.cuda() for k, v in batch.inputs.items()}
    runs = []
    for implementation in ("sdpa", "flash_attention_2"):
        model.set_attn_implementation(implementation)
        with pruning(model, policy, 0.3, budget="final"):
            runs.append(generate(model, inputs, steps=1).logits)
    torch.testing.assert_close(runs[0], runs[1], rtol=0.05, atol=0.2)
