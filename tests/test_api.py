"""The public face: what it accepts, what it refuses and how, and that it can be undone."""

import copy
import functools
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

import tokenprune
from tokenprune import (
    Policy,
    Selection,
    UnknownPolicyError,
    UnsupportedModelError,
    apply_pruning,
    cli,
    list_policies,
    list_supported_models,
    pruning,
    pruning_report,
    register,
    remove_pruning,
)
from tokenprune.budget import Budget
from tokenprune.policies import DivPrune, Random, registry

from .families import FAMILIES, NEWER, PLAIN_FAMILIES, get_model, ragged_batch, text_of
from .oracles import generate


def snapshot(model):
    """Every attribute and hook of every module."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {
        name: (
            sorted(vars(m)),
            type(m),
            id(getattr(m, "config", None)),
            [list(vars(m)[h]) for h in (*hooks, "_forward_hooks_always_called")],
        )
        for name, m in model.named_modules()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_removal_leaves_nothing(family):
    model, batch = get_model(family), ragged_batch(family)
    generate(model, batch.inputs, steps=1)  # transformers hangs hooks of its own on first use
    before, config = snapshot(model), copy.deepcopy(model.config.to_dict())
    assert apply_pruning(model, "divprune") is model
    assert snapshot(model) != before
    generate(model, batch.inputs, steps=2)
    deep = ["todre", ["divprune", "fastv"]] if family in PLAIN_FAMILIES else []
    for policy in ("random", "fopru", *deep, "recoverable"):
        apply_pruning(model, policy)  # replaces
        generate(model, batch.inputs, steps=2)
    assert remove_pruning(model) is model
    assert snapshot(model) == before
    assert model.config.to_dict() == config
    assert remove_pruning(model) is model  # again: nothing to do


def test_applying_twice_replaces():
    model, batch = get_model("llava"), ragged_batch("llava")
    apply_pruning(model, "divprune", 0.9)
    apply_pruning(model, "divprune", 0.5)
    generate(model, batch.inputs, steps=1)
    assert {r.n_after for r in pruning_report(model)} == {18}
    remove_pruning(model)
    with pytest.raises(ValueError, match="apply_pruning"):
        pruning_report(model)


def test_blocks_nest_and_restore():
    model = get_model("llava")
    with pruning(model, "divprune", 0.5) as same:
        assert same is model
        outer = snapshot(model)
        with pruning(model, "random", 0.25):
            assert snapshot(model) != outer
            generate(model, ragged_batch("llava").inputs, steps=1)
            assert {r.n_after for r in pruning_report(model)} == {9}
        generate(model, ragged_batch("llava").inputs, steps=1)
        assert {r.n_after for r in pruning_report(model)} == {18}
        with pytest.raises(RuntimeError, match="mine"), pruning(model, "grid"):
            raise RuntimeError("mine")
        assert pruning_report(model)
    with pytest.raises(ValueError, match="no pruning"):
        pruning_report(model)


@pytest.mark.parametrize(("family", "n_after"), [("llava", 9), ("qwen2_vl", 3)])
def test_default_budget_of_the_family(family, n_after):
    model = get_model(family)
    with pruning(model, "divprune"):
        assert pruning_report(model) == []
        generate(model, ragged_batch(family).inputs, steps=1)
        record = pruning_report(model)[0]
    assert record.n_after == n_after
    assert len(record.indices) == n_after
    assert record.select_ms > 0


def test_a_count_above_the_image_keeps_all_of_it():
    model = get_model("llava")
    with pruning(model, "divprune", 1000):
        generate(model, ragged_batch("llava").inputs, steps=1)
        assert all(r.n_after == r.n_before for r in pruning_report(model))


def test_newline_tokens_are_no_candidates():
    model, batch = get_model("llava_next"), ragged_batch("llava_next")
    with pruning(model, "divprune", 0.3):
        generate(model, batch.inputs, steps=1)
        for record in pruning_report(model):
            thumbnail, mosaic = record.grids
            width = mosaic[2] + 1
            start = thumbnail[1] * thumbnail[2]
            newlines = {start + y * width + width - 1 for y in range(mosaic[1])}
            assert record.n_before == start + mosaic[1] * width
            assert not newlines & set(record.indices)
    with pruning(model, "divprune", record.n_before - 2):  # more than there is picture
        generate(model, batch.inputs, steps=1)
        assert pruning_report(model)[-1].n_after == record.n_before - 2


@pytest.mark.parametrize(
    "keep", [0, -1, 0.0, -0.1, 1.5, math.nan, math.inf, True, False, "0.5", [0.5], 1j, np.float32(2), np.int64(0)]
)
def test_bad_budgets(keep):
    model = get_model("llava")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"keep=.*accepted: a float in \(0, 1\]"):
        apply_pruning(model, "divprune", keep)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("keep", "n", "count"),
    [(0.1, 576, 58), (0.098, 576, 56), (0.001, 100, 1), (1.0, 7, 7), (1, 7, 1), (64, 576, 64), (64, 10, 10)]
    + [(0.5, 5, 2), (0.5, 7, 4), (np.float32(0.5), 8, 4), (np.int64(3), 8, 3), (Fraction(1, 4), 8, 2)],
)
def test_budgets(keep, n, count):
    assert Budget(keep).count(n) == count


def test_budgets_of_stages():
    model, batch = get_model("llava"), ragged_batch("llava")
    for policy, keep in ((["divprune", "pyramiddrop"], [0.5, 0.1]), (["pyramiddrop", "divprune"], (0.1, 0.5))):
        with pruning(model, policy, keep):
            generate(model, batch.inputs, steps=2)
            assert all((r.n_after, len(r.deep_indices)) == (18, 4) for r in pruning_report(model))
    for policy, left in (("auto", (24, 7)), (["auto"], (24, 7)), (["auto", "fastv"], (16, 7))):
        with pruning(model, policy, 0.2):
            generate(model, batch.inputs, steps=2)
            assert all((r.n_after, len(r.deep_indices)) == left for r in pruning_report(model))
    for alone in (pruning(model, ["auto"], [0.2]), pruning(model, "auto", 0.2, depths=())):
        with alone:
            generate(model, batch.inputs, steps=2)
            assert all((r.n_after, r.cuts) == (7, ()) for r in pruning_report(model))
    with pytest.raises(ValueError, match="one budget for each of 2 policies"):
        apply_pruning(model, ["divprune", "fastv"], [0.5])
    with pytest.raises(ValueError, match=r"keep=2\.0.*accepted"):
        apply_pruning(model, ["divprune", "fastv"], [0.5, 2.0])


def test_unknown_policy_lists_the_known_and_suggests():
    with pytest.raises(UnknownPolicyError, match=r"'divprun'.*Did you mean 'divprune'.*grid, .*random"):
        apply_pruning(get_model("llava"), "divprun")
    assert {"divprune", "random", "grid"} <= set(list_policies())


def test_unsupported_model_lists_the_supported():
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(UnsupportedModelError, match=r"'bert'.*llava, llava_next.*qwen3_vl"):
        apply_pruning(bert, "divprune")
    with pytest.raises(UnsupportedModelError, match="str object"):
        apply_pruning("llava", "divprune")


def test_unknown_options_and_wrong_types():
    model = get_model("llava")
    with pytest.raises(ValueError, match=r"'sede' for policy 'random'; it takes: seed"):
        apply_pruning(model, "random", sede=1)
    with pytest.raises(ValueError, match="it takes none"):
        apply_pruning(model, "divprune", alpha=1)
    with pytest.raises(ValueError, match="into the policy instance"):
        apply_pruning(model, Random(), seed=1)
    with pytest.raises(TypeError, match="not the class"):
        apply_pruning(model, Random)
    with pytest.raises(ValueError, match="one policy"):
        apply_pruning(model, ["divprune", "random"])
    with pytest.raises(ValueError, match=r"positions='packed'.*'original', 'compact'"):
        apply_pruning(model, "divprune", positions="packed")
    with pytest.raises(ValueError, match="no pruning"):
        pruning_report(model)


def test_a_custom_policy_instance_and_by_name():
    @dataclass
    class Loudest(Policy):
        """Largest norm times alpha."""

        alpha: float = 1.0

        def select(self, tokens, n_keep):
            return Selection((self.alpha * tokens.features.norm(dim=-1)).topk(n_keep).indices.sort().values)

    model = get_model("llava")
    with pruning(model, Loudest(alpha=2.0), keep=5):
        generate(model, ragged_batch("llava").inputs, steps=1)
        assert {r.n_after for r in pruning_report(model)} == {5}
    try:
        register("loudest")(Loudest)
        with pruning(model, ["loudest"], keep=5, alpha=3.0):
            pass
        with pytest.raises(ValueError, match="already registered"):
            register("loudest")(DivPrune)
    finally:
        tokenprune.policies.base._REGISTRY.pop("loudest")
    with pytest.raises(TypeError, match="dataclass"):
        register("nothing")(int)
    assert "loudest" not in registry()


def test_policies_of_other_packages(monkeypatch, caplog):
    """Entry points are found by name; one that does not load is a warning, not an end."""
    good = EntryPoint("elsewhere", "tokenprune.policies.random:Elsewhere", "tokenprune.policies")
    bad = EntryPoint("broken", "no_such_package:Policy", "tokenprune.policies")
    monkeypatch.setattr("tokenprune.policies.random.Elsewhere", type("Elsewhere", (Random,), {}), raising=False)
    monkeypatch.setattr("tokenprune.policies.base.entry_points", lambda group: [good, bad])
    try:
        assert "elsewhere" in list_policies()
        assert "broken" not in list_policies()
        assert "no_such_package" in caplog.text
        apply_pruning(get_model("llava"), "elsewhere", seed=4)
        remove_pruning(get_model("llava"))
    finally:
        tokenprune.policies.base._REGISTRY.pop("elsewhere")


def test_what_a_policy_needs_is_given_or_refused():
    seen = []

    @dataclass
    class Reader(Policy):
        needs = frozenset({"text"})

        def select(self, tokens, n_keep):
            seen.append(tokens.text)
            return Selection(torch.arange(n_keep))

    model, batch = get_model("llava"), ragged_batch("llava")
    with pruning(model, Reader(), 0.5):
        generate(model, batch.inputs, steps=1)
    ids = batch.inputs["input_ids"][0]
    words = ids[(ids != 90) & batch.inputs["attention_mask"][0].bool()]
    assert torch.equal(seen[0], model.get_input_embeddings()(words))

    @dataclass
    class Greedy(Policy):
        needs = frozenset({"telepathy"})

        def select(self, tokens, n_keep):
            return Selection(torch.arange(n_keep))

    with pytest.raises(ValueError, match="telepathy"):
        apply_pruning(model, Greedy())


def test_features_that_replace_the_kept_ones():
    @dataclass
    class Mean(Policy):
        def select(self, tokens, n_keep):
            return Selection(torch.arange(n_keep), tokens.features.mean(0).expand(n_keep, -1))

    model, batch, seen = get_model("llava"), ragged_batch("llava"), []
    with pruning(model, Mean(), 2):
        handle = text_of(model).register_forward_pre_hook(
            lambda m, a, k: seen.append(k["inputs_embeds"]), with_kwargs=True
        )
        generate(model, batch.inputs, steps=1)
        handle.remove()
    with torch.no_grad():
        features = model.model.get_image_features(batch.inputs["pixel_values"])
    third = list(getattr(features, "pooler_output", features))[3]
    row = seen[0][2]  # the longest row has no padding: <s>, 23 words, then what is left of the image
    torch.testing.assert_close(row[24:26], third.mean(0).expand(2, -1))


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_an_error_in_a_policy_leaves_the_model_usable(family):
    @dataclass
    class Broken(Policy):
        def select(self, tokens, n_keep):
            raise ZeroDivisionError("in the policy")

    model, batch = get_model(family), ragged_batch(family)
    before = generate(model, batch.inputs)
    apply_pruning(model, Broken(), 0.5)
    with pytest.raises(ZeroDivisionError, match="in the policy"):
        generate(model, batch.inputs)
    # text goes on, unpruned, with the hooks still there; nothing of the failed call is left over
    text = dict(input_ids=torch.full((2, 5), 7), attention_mask=torch.ones(2, 5, dtype=torch.long))
    during = generate(model, text)
    remove_pruning(model)
    assert torch.equal(generate(model, text).logits, during.logits)
    assert torch.equal(generate(model, batch.inputs).logits, before.logits)


@pytest.mark.parametrize("policy", ["random", "fopru", "todre", ["divprune", "fastv"]])
def test_a_deep_copy_is_pruned_on_its_own(policy):
    model, batch = get_model("llava"), ragged_batch("llava")
    stock = generate(model, batch.inputs)
    with pruning(model, policy, 0.3):
        pruned = generate(model, batch.inputs)
        twin = copy.deepcopy(model)
    assert torch.equal(generate(twin, batch.inputs).logits, pruned.logits)
    assert pruning_report(twin)
    remove_pruning(twin)
    assert torch.equal(generate(twin, batch.inputs).logits, stock.logits)
    hooks = lambda m: {k: (v[0], v[3]) for k, v in snapshot(m).items()}
    assert hooks(twin) == hooks(model)


def test_saving_a_pruned_model_saves_the_stock_model(tmp_path):
    model = get_model("llava")
    with pruning(model, "todre", 0.3):
        model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
    again.generation_config.eos_token_id = None
    batch = ragged_batch("llava")
    assert torch.equal(generate(again, batch.inputs).logits, generate(model, batch.inputs).logits)


def test_embeddings_instead_of_ids():
    model, batch = get_model("llava"), ragged_batch("llava")
    ids = batch.inputs["input_ids"]
    with torch.no_grad(), pruning(model, "divprune", 0.3):
        expected = model(**batch.inputs).logits
        embeds = model.get_input_embeddings()(ids)
        inputs = {k: v for k, v in batch.inputs.items() if k != "input_ids"}
        assert torch.equal(model(inputs_embeds=embeds, **inputs).logits, expected)
        assert torch.equal(model(ids, batch.inputs["pixel_values"], batch.inputs["attention_mask"]).logits, expected)


def test_a_wrapper_of_somebody_elses_stays():
    model, batch = copy.deepcopy(get_model("llava")), ragged_batch("llava")
    calls = []
    original = model.model.get_image_features

    def theirs(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    functools.update_wrapper(theirs, original)
    model.model.get_image_features = theirs
    apply_pruning(model, "random", keep=0.5)
    model(**batch.inputs)
    assert calls
    remove_pruning(model)
    assert model.model.get_image_features is theirs


def test_supported_models_are_the_ones_we_test_and_name():
    known = set(FAMILIES) | set(NEWER)  # the file of a newer family is there anyway
    assert set(list_supported_models()) == known
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    table = readme[readme.index("| model type |") :].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) == known | {"paligemma"}


def test_models_command(capsys):
    cli.main(["models"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in FAMILIES)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in PLAIN_FAMILIES])
def test_no_decoder_stage_where_layers_cannot_follow(family):
    for policy in ("fastv", "todre", ["divprune", "fastv"]):
        with pytest.raises(ValueError, match=rf"'{family}' does not allow.*removal=False"):
            apply_pruning(get_model(family), policy)
    model = get_model(family)
    with pruning(model, "auto", 0.2):  # does without
        generate(model, ragged_batch(family).inputs, steps=2)
        assert all((r.n_after, r.cuts) == (max(1, round(0.2 * r.n_before)), ()) for r in pruning_report(model))
